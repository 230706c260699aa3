"""The arguments that torch's classes lack: their defaults and what they allow, then their use.

They stand in a param group only where they were set, so that checkpoints that name every key of a
group, as torch.distributed.checkpoint's do, pass between torch's classes and ours.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch


class Argument(NamedTuple):
    """A keyword-only argument, kept under its name in the param groups that set it."""

    default: Any
    allowed: str
    allows: Callable[[Any], bool]  # False for NaN


def _switch() -> Argument:
    return Argument(False, "True or False", lambda x: x in (True, False))


def _limit() -> Argument:
    return Argument(None, "a number >= 0, or None for no limit", lambda x: x is None or x >= 0)


# Of every class: the passes around its update.
PASSES = {
    "max_grad_norm": _limit(),
    "max_grad_value": _limit(),
    "skip_nonfinite": _switch(),
    "l1": Argument(0.0, "a finite number >= 0", lambda x: 0 <= x < math.inf),
    "ema_decay": Argument(
        None, "a number from 0 to 1, or None for no average", lambda x: x is None or 0 <= x <= 1
    ),
    "clear_grads": _switch(),
    "track_stats": _switch(),
}
# Likewise; fastopt/precision.py says what they come to.
FORMATS = {
    "state_bits": Argument(
        None, "8, 16, 32, or None for torch's dtype", lambda x: x in (None, 8, 16, 32)
    ),
    "min_8bit_size": Argument(4096, "a whole number >= 1", lambda x: x == int(x) and x >= 1),
    "master_weight_bits": Argument(
        None, "24, 32, or None for no correction", lambda x: x in (None, 24, 32)
    ),
    "stochastic_rounding": _switch(),
    "rounding_seed": Argument(
        0, "a whole number from 0 to 2**64 - 1", lambda x: x == int(x) and 0 <= x < 2**64
    ),
}
OWN = PASSES | FORMATS
FUSED = {"fused": Argument(None, "True, False or None", lambda x: x in (True, False, None))}
DECOUPLED_WEIGHT_DECAY = {"decoupled_weight_decay": _switch()}
EPS_IN_SQRT = {"eps_in_sqrt": _switch()}
_ALL = OWN | FUSED | DECOUPLED_WEIGHT_DECAY | EPS_IN_SQRT


def setting(group: Mapping[str, Any], name: str) -> Any:
    """What a param group has an argument be; its default where it was not set."""
    return group[name] if name in group else _ALL[name].default


def check(arguments: Mapping[str, Argument], values: Mapping[str, Any]) -> None:
    """Raise ValueError for the first of `values` that its argument does not allow."""
    for name, argument in arguments.items():
        if name in values and not argument.allows(values[name]):
            raise ValueError(f"{name} is {values[name]!r}; allowed: {argument.allowed}")
    if values.get("stochastic_rounding") and values.get("master_weight_bits"):
        raise ValueError(
            "stochastic_rounding=True rounds a parameter that has no correction, which "
            f"master_weight_bits={values['master_weight_bits']} gives it; leave one of them out"
        )


def signature(cls: type, arguments: Mapping[str, Argument]) -> inspect.Signature:
    """The signature of torch's class with these arguments added, for help() and editors."""
    own = inspect.signature(cls)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=argument.default)
        for name, argument in arguments.items()
    ]
    group = inspect.Parameter("norm_group", inspect.Parameter.KEYWORD_ONLY, default=None)
    return own.replace(parameters=[*own.parameters.values(), *added, group])


def adopt(
    optimizer: torch.optim.Optimizer, names: Iterable[str], groups: list[dict[str, Any]]
) -> None:
    """Give every param group what it lacks of these: from the group it replaces, else what the
    optimizer was made with.
    """
    for i, group in enumerate(optimizer.param_groups):
        old = groups[i] if i < len(groups) else {}
        known = {**optimizer.defaults, **old}
        for name in names:
            if name in known:
                group.setdefault(name, known[name])
