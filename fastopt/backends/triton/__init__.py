"""Triton: whether it can be used, found out without importing it; its modules import it.

`rules` holds one file a rule; `kernel` the kernels that take it, of `streams` in `formats`;
`slots`, `bucket` and `tables` what they read; `launch` the step. See docs/gpu.md.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

from torch import Tensor


@cache
def missing() -> str:
    """Why Triton cannot be used here, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    return ""


def lacks(rule: str) -> str:
    """Why Triton cannot take a rule that the compiled core has, or an empty string. Imports it."""
    from .rules import RULES

    return "" if rule in RULES else f"no Triton kernel has the rule {rule!r}"


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors too. Imports Triton."""
    from . import formats

    return bool(formats.INTERPRETED.value)


def how(param: Tensor, state: dict[str, Any]) -> str:
    """What it does with a parameter, for explain()."""
    from .slots import staged

    launches = "one launch per combination of dtypes"
    others = [param.grad, *(state[name] for name in state if name != "step")]
    same_shape = [t for t in others if isinstance(t, Tensor) and t.shape == param.shape]
    if staged(param, same_shape):
        return f"{launches}; copied to and from a dense layout, as its tensors lie apart"
    return launches
