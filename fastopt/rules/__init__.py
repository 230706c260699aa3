"""The rules in plain NumPy: what fastopt's engine computes, bit for bit.

Each is one function in a module of its name (sgd, adam, ...), `rule(p, g, states, *, step, <torch's
hyperparameters>, dtype, grad_scale)`, that returns the new parameter and a new dict of states under
torch's names; an absent state starts as torch starts it. Nothing is changed in place, and nothing
here uses the compiled core: these are for checking it.

    p, states = rules.adamw(p, g, states, step=1, lr=1e-3, dtype="float32")

`dtype` names how the tensors are stored. Arrays are of the type that is computed in: float64 for
"float64", float32 for "float32", "bfloat16" and "float16", whose values are rounded where the
engine stores them. "exact" is the mathematics: np.longdouble (at least float64) throughout, with no
rounding to reproduce; errors are measured against it.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

for _name in sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py")):
    _found = vars(import_module(f".{_name}", __name__))
    if _name in _found:  # a module that holds a rule is named as it is
        globals()[_name] = _found[_name]


def __getattr__(name: str) -> Any:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
