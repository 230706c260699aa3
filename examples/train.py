"""Training: Settings, Learner (a net and its optimizer), train_pair in lock-step, observe."""

import copy
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import TensorDataset

from fastopt.insight import History, watch

from .composition import averaged
from .data import batches
from .nets import NETS
from .optimizers import LIBRARIES, SCHEDULES, build

# The first step allocates the optimizer's state and starts threads; it is trained but not timed.
WARM_UP_STEPS = 1
# Besides the libraries: torch again, with every initial weight moved by one rounding step. How far
# its losses stray from torch's is how far rounding alone carries this net.
CONTROL = "control"


@dataclass(frozen=True)
class Settings:
    """What all trainings of one demo have in common.

    ``overrides`` are optimizer arguments that take the place of the registry's and torch's.
    """

    epochs: int
    batch_size: int
    seed: int
    schedule: str
    augmentations: tuple[str, ...]
    overrides: Mapping[str, Any]

    def steps(self, train: TensorDataset) -> int:
        """Number of steps that ``epochs`` epochs of ``train`` take; the last batch may be short."""
        return self.epochs * math.ceil(len(train) / self.batch_size)


@dataclass
class Learner:
    """A net with its optimizer and schedule, and what was measured while it learnt.

    ``losses`` has one entry per step; ``step_seconds`` (time in ``optimizer.step``) and
    ``all_seconds`` (forward, backward and step) have one per step after the warm-up.
    """

    net: nn.Module
    optimizer: Optimizer
    schedule: LRScheduler
    losses: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    all_seconds: list[float] = field(default_factory=list)

    def learn(self, images: Tensor, labels: Tensor) -> None:
        """One training step on a batch: images (n, 1, 28, 28), labels (n,)."""
        began = perf_counter()
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        before_step = perf_counter()
        self.optimizer.step()
        ended = perf_counter()
        self.schedule.step()
        self.losses.append(loss.item())
        if len(self.losses) > WARM_UP_STEPS:
            self.step_seconds.append(ended - before_step)
            self.all_seconds.append(ended - began)

    def median_step(self) -> float:
        """Median seconds of one ``optimizer.step``: a pause of the machine does not move it."""
        return statistics.median(self.step_seconds)

    @torch.no_grad()
    def accuracy(self, data: TensorDataset) -> float:
        """Share of ``data`` that the net classifies correctly, in [0, 1].

        With its averaged weights, where the optimizer keeps them.
        """
        images, labels = data.tensors
        with averaged(self.optimizer):
            return float((self.net(images).argmax(dim=1) == labels).double().mean())


def new_net(name: str, seed: int) -> nn.Module:
    """The net ``name`` with the initial weights that ``seed`` stands for."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETS[name]()


@torch.no_grad()
def nudged(net: nn.Module) -> nn.Module:
    """A copy of ``net`` with each weight replaced by the next larger number of its type."""
    result = copy.deepcopy(net)
    for parameter in result.parameters():
        parameter.copy_(torch.nextafter(parameter, torch.full_like(parameter, math.inf)))
    return result


def train_pair(
    net: str,
    optimizer: str,
    settings: Settings,
    train: TensorDataset,
    on_step: Callable[[], object],
) -> dict[str, Learner]:
    """Train ``net`` once per library, from equal weights and on equal batches, in lock-step.

    Lock-step pairs the timings: both libraries meet the same load of the machine at each batch.
    Which goes first alternates, because the second finds the batch in the cache. The result has
    one learner per library and the CONTROL. ``on_step`` is called after each batch.
    """
    initial = new_net(net, settings.seed)

    def learner(library: str, weights: nn.Module) -> Learner:
        built = build(library, optimizer, weights.parameters(), settings.overrides)
        schedule = SCHEDULES[settings.schedule](built, settings.steps(train))
        return Learner(weights, built, schedule)

    learners = {library: learner(library, copy.deepcopy(initial)) for library in LIBRARIES}
    turn = list(learners.values())
    learners[CONTROL] = learner("torch", nudged(initial))
    for images, labels in _batches(settings, train):
        for each in (*turn, learners[CONTROL]):
            each.learn(images, labels)
        turn.reverse()
        on_step()
    return learners


def observe(
    net: str,
    optimizer: str,
    settings: Settings,
    train: TensorDataset,
    on_step: Callable[[], object],
) -> History:
    """Train with fastopt once more, untimed: what each step did to each parameter."""
    model = new_net(net, settings.seed)
    tracked = {**settings.overrides, "track_stats": True}
    built = build("fastopt", optimizer, model.named_parameters(), tracked)
    schedule = SCHEDULES[settings.schedule](built, settings.steps(train))
    learner, history = Learner(model, built, schedule), History()
    with watch(built, history):
        for images, labels in _batches(settings, train):
            learner.learn(images, labels)
            on_step()
    return history


def _batches(settings: Settings, train: TensorDataset) -> Iterator[tuple[Tensor, Tensor]]:
    return batches(
        train,
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        augmentations=settings.augmentations,
        seed=settings.seed,
    )
