"""Optimizer update steps at the speed of memory: a drop-in for torch.optim.

    import fastopt
    optimizer = fastopt.AdamW(model.parameters(), lr=1e-3)

Every public name of torch.optim, so that `import fastopt as optim` is enough: the optimizers that
fastopt has, and all else as torch's own objects (LBFGS, lr_scheduler, swa_utils, ...). Then
explain(), which tells the path each parameter takes and why; memory(), which tells beforehand what
training takes; patch(), for trainers that make torch's classes; fastopt.insight: a learning rate
chosen, layers shown; fastopt.functional: one fused pass over given lists, one function a rule,
under torch's names.
"""

import sys

import torch  # before the core, which shares the OpenMP runtime that torch loads

try:
    from . import _core
except ImportError as error:
    raise ImportError(
        f"fastopt's compiled core does not load here (torch {torch.__version__}): {error}. "
        "It needs torch >= 2.10 and to have been built for this Python and this kind of "
        "processor; reinstall both with `pip install --force-reinstall fastopt`"
    ) from error

# The engine borrows references for the length of a step, which the GIL keeps alive. A free-threaded
# Python turns it on when it loads the core, with a warning, unless it is told not to.
if not getattr(sys, "_is_gil_enabled", lambda: True)():
    raise ImportError(
        "fastopt needs the GIL, which is forced off here (PYTHON_GIL=0 or -X gil=0): without the "
        "setting, importing fastopt turns it on"
    )

from . import functional, insight, optim
from .explain import explain
from .memory import memory
from .optim import *  # noqa: F403 - every optimizer class
from .patch import patch

_core.isa()  # a wrong FASTOPT_ISA is reported here, not in the middle of training

# All else that torch.optim has. Of two classes of one name mypy takes the first, Python the last.
from torch.optim import *  # type: ignore[assignment]  # noqa: E402, F403

from .optim import *  # noqa: E402, F403

__version__ = "0.1.0"
__all__ = ["explain", "functional", "insight", "memory", "patch"]
__all__ += optim.__all__
__all__ += torch.optim.__all__
