"""What a rule declares of its states: the core's table, where kernels have it; the one here of
rules over whole tensors (row sums, matrix products), which no kernel of single elements has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _core

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Whole:
    """A rule over whole tensors: `states` are all that it may keep of a parameter, `shapes` those
    of a parameter of a shape, each with its own, or None: like the gradient; `counts`: beside them
    a `step`; `compiled`: whether the core has it, for this CPU.
    """

    states: tuple[str, ...]
    shapes: Callable[[Shape], dict[str, Shape | None]]
    counts: bool = False
    compiled: bool = False


def _factors(shape: Shape) -> dict[str, Shape | None]:
    if len(shape) < 2:
        return {"variance": None}
    return {"row_var": (*shape[:-1], 1), "col_var": (*shape[:-2], 1, shape[-1])}


WHOLE = {
    "muon": Whole(("momentum_buffer",), lambda _: {"momentum_buffer": None}),
    "adafactor": Whole(("row_var", "col_var", "variance"), _factors, True, True),
}


def states(rule: str) -> set[str]:
    """The names of all that a rule may keep beside numbers."""
    if rule in WHOLE:
        return {*WHOLE[rule].states}
    return {name for variant in _core.variants(rule) for name in variant}


def kinds(rule: str, group: dict[str, Any]) -> dict[str, str]:
    """The states that compact formats are for, each with what numbers it holds."""
    return {} if rule in WHOLE else _core.kinds(rule, group)


def numbers(rule: str, group: dict[str, Any] | None = None) -> set[str]:
    """The names of the numbers that a parameter carries."""
    if rule in WHOLE:
        return {"step"} if WHOLE[rule].counts else set()
    return {name for name, _ in _core.carried(rule, group)}


def waits_for_norms(rule: str) -> bool:
    """Whether an update by the core takes the norms of its tensor before it begins."""
    return rule not in WHOLE and _core.waits_for_norms(rule)


def bytes_of_whole(rule: str, param: Tensor, shape: Shape) -> dict[str, int]:
    """Of a rule over whole tensors, what the states of a parameter of a shape take."""
    found = WHOLE[rule].shapes(shape) if rule in WHOLE else {}
    return {
        name: math.prod(shape if of is None else of) * param.element_size()
        for name, of in found.items()
    }


def begun(rule: str, param: Tensor) -> dict[str, Tensor]:
    """Of such a rule, a parameter's states before its first step, as torch makes them."""
    whole, like = WHOLE[rule], param if param.grad is None else param.grad
    made: dict[str, Tensor] = {}
    if whole.counts:
        wide = torch.get_default_dtype() == torch.float64
        made["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
    for name, shape in whole.shapes(tuple(param.shape)).items():
        zeros = torch.zeros_like(like) if shape is None else like.new_zeros(shape)
        made[name] = zeros.detach()
    return made
