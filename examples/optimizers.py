"""What a name on the command line stands for: LIBRARIES, OPTIMIZERS and SCHEDULES, then build."""

from collections.abc import Callable, Iterable, Mapping
from itertools import compress
from operator import not_
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

# A parameter, also with its name before it.
Named = nn.Parameter | tuple[str, nn.Parameter]

# The order is that of every table and picture: the reference first.
LIBRARIES = ("torch", "fastopt")

# Arguments that suit these nets; what is not named here keeps the class's default.
SUITED: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
    "adam": {"lr": 3e-3, "weight_decay": 1e-4},
    "adamw": {"lr": 3e-3, "weight_decay": 1e-2},
    "rmsprop": {"lr": 1e-3, "weight_decay": 1e-4},
    "radam": {"lr": 1e-2, "weight_decay": 1e-4},
    "asgd": {"lr": 0.1, "weight_decay": 1e-4},
    "lamb": {"lr": 1e-2, "weight_decay": 1e-2},
    "lars": {"lr": 10.0, "weight_decay": 1e-4},
    "lion": {"lr": 1e-3, "weight_decay": 1e-2},
    "adabelief": {"lr": 3e-3, "weight_decay": 1e-2},
    "ademamix": {"lr": 1e-3, "weight_decay": 1e-2},
    "adan": {"lr": 3e-3, "weight_decay": 1e-2},
    "adamwschedulefree": {"lr": 3e-3, "weight_decay": 1e-2},
    "sgdschedulefree": {"lr": 0.1, "weight_decay": 1e-4},
    "muon": {"lr": 0.02, "weight_decay": 1e-2},
}


class Choice(NamedTuple):
    """An optimizer: its class name, and arguments, learning rate and weight decay among them."""

    class_name: str
    arguments: dict[str, Any]

    @property
    def classes(self) -> dict[str, Any]:
        """By library. Where torch has no such class, its operations one by one: see Lion."""
        ours = getattr(fastopt, self.class_name)
        return {"torch": ours.__bases__[1], "fastopt": ours}


def choice(cls: Any) -> Choice:
    """A class of fastopt's, with the arguments that suit it."""
    defaults = cls([torch.empty(0, 0)]).defaults
    kept = {name: defaults[name] for name in ("lr", "weight_decay") if name in defaults}
    return Choice(cls.__name__, kept | SUITED.get(cls.__name__.lower(), {}))


OPTIMIZERS = {cls.__name__.lower(): choice(cls) for cls in fastopt.optim.CLASSES}

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
    parameters: Iterable[Named],
    overrides: Mapping[str, Any],
) -> Optimizer:
    """The optimizer ``name`` of ``library``, with ``overrides`` of its arguments (lr, ...).

    torch's classes lack the passes around the update; they are composed around those. What Muon
    does not take, AdamW trains.
    """
    if name == "muon":
        return with_the_rest(library, [*parameters], overrides)
    return made(library, name, parameters, overrides)


def with_the_rest(library: str, parameters: list[Named], overrides: Mapping[str, Any]) -> Optimizer:
    """Muon for the matrices, as it takes nothing else, and AdamW for the rest: biases, filters.

    AdamW steps after Muon, and its learning rate follows the schedule of Muon's.
    """
    matrices = [(p[1] if isinstance(p, tuple) else p).ndim == 2 for p in parameters]
    muon = made(library, "muon", [*compress(parameters, matrices)], overrides)
    others = [*compress(parameters, map(not_, matrices))]
    if not others:
        return muon
    own = {n: value for n, value in overrides.items() if n in composition.ARGUMENTS}
    rest = made(library, "adamw", others, own)
    start = muon.param_groups[0]["lr"]
    lr = rest.param_groups[0]["lr"]

    def step(*_: Any) -> None:
        rest.param_groups[0]["lr"] = lr * muon.param_groups[0]["lr"] / start if start else lr
        rest.step()
        rest.zero_grad()

    muon.register_step_post_hook(step)
    composition.BESIDE[muon] = rest
    return muon


def made(
    library: str,
    name: str,
    parameters: Iterable[Named],
    overrides: Mapping[str, Any],
) -> Optimizer:
    choice = OPTIMIZERS[name]
    cls = choice.classes[library]
    arguments = {**choice.arguments, **overrides}
    passes = {n: arguments.pop(n) for n in composition.ARGUMENTS if n in arguments}
    if library == "fastopt":
        ours: Optimizer = cls(parameters, **arguments, **passes)
        return ours
    theirs: Optimizer = cls(parameters, **arguments)
    composition.attach(theirs, **passes)
    return theirs
