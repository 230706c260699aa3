"""What a name on the command line stands for: LIBRARIES, OPTIMIZERS and SCHEDULES, then build."""

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    StepLR,
)

import fastopt

from . import composition

# The order is that of every table and picture: the reference first.
LIBRARIES: dict[str, ModuleType] = {"torch": torch.optim, "fastopt": fastopt}


class Choice(NamedTuple):
    """An optimizer: its class name, the same in each library, and arguments that suit these nets.

    What is not named here keeps torch's default.
    """

    class_name: str
    arguments: dict[str, Any]


OPTIMIZERS = {
    "sgd": Choice("SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4}),
    "adam": Choice("Adam", {"lr": 3e-3, "weight_decay": 1e-4}),
    "adamw": Choice("AdamW", {"lr": 3e-3, "weight_decay": 1e-2}),
    "rmsprop": Choice("RMSprop", {"lr": 1e-3, "weight_decay": 1e-4}),
}

# Each takes the optimizer and the number of steps of the whole training, and is stepped per batch.
SCHEDULES: dict[str, Callable[[Optimizer, int], LRScheduler]] = {
    "none": lambda optimizer, _steps: LambdaLR(optimizer, lambda _step: 1.0),
    "step": lambda optimizer, steps: StepLR(optimizer, step_size=max(1, steps // 3), gamma=0.3),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, T_max=steps),
    # cycle_momentum would overrule the momentum and the betas chosen above.
    "onecycle": lambda optimizer, steps: OneCycleLR(
        optimizer, max_lr=optimizer.param_groups[0]["lr"], total_steps=steps, cycle_momentum=False
    ),
}


def build(
    library: str,
    name: str,
    parameters: Iterable[nn.Parameter],
    overrides: Mapping[str, Any],
) -> Optimizer:
    """The optimizer ``name`` of ``library``, with ``overrides`` of its arguments (lr, ...).

    torch's classes lack the passes around the update; they are composed around those.
    """
    choice = OPTIMIZERS[name]
    cls = getattr(LIBRARIES[library], choice.class_name)
    arguments = {**choice.arguments, **overrides}
    passes = {n: arguments.pop(n) for n in composition.ARGUMENTS if n in arguments}
    if library == "fastopt":
        ours: Optimizer = cls(parameters, **arguments, **passes)
        return ours
    theirs: Optimizer = cls(parameters, **arguments)
    composition.attach(theirs, **passes)
    return theirs
