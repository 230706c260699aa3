"""How time is taken: statistics of samples, the plan of a row, the interleaved rounds."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    q1: float
    q3: float

    @property
    def relative(self) -> float:
        """Width of the middle half of the samples, in medians."""
        return (self.q3 - self.q1) / self.median


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of `samples`, interpolated between them."""
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0])
    q1, median, q3 = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(median, q1, q3)


def paired(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Ratio of each round: both times of a pair saw the same machine, milliseconds apart."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


@dataclass(frozen=True)
class Plan:
    """How long a row may take: seconds, rounds, the shortest sample worth a clock reading."""

    budget: float = 3.0
    min_rounds: int = 7
    max_rounds: int = 101
    min_sample: float = 2e-3
    placements: int | None = None  # how often everything is built anew; None: see race.py

    def rounds(self, seconds_per_round: float) -> int:
        """Rounds that fit the budget, within the plan's bounds."""
        fitting = int(self.budget / seconds_per_round)
        return max(self.min_rounds, min(self.max_rounds, fitting))


QUICK = Plan(budget=0.0, min_rounds=2, max_rounds=2, min_sample=0.0)


def timed(step: Callable[[], object], repeats: int) -> float:
    """Seconds per step over `repeats` steps."""
    loop = range(repeats)
    begin = time.perf_counter_ns()
    for _ in loop:
        step()
    return (time.perf_counter_ns() - begin) * 1e-9 / repeats


def interleave(steps: Mapping[str, Callable[[], object]], plan: Plan) -> Samples:
    """Seconds per step of every contestant in every round; index i of all lists is round i.

    Contestants take turns. The order rotates and every second round runs backwards, so that each
    is as often before as after any other. A step too short for one clock reading is repeated, and
    then begins with an untimed step: such tensors fit a cache, which the contestant before emptied.
    """
    repeats: dict[str, int] = {}
    cost = 0.0
    for name, step in steps.items():
        step()
        first = timed(step, 1)
        repeats[name] = max(1, math.ceil(plan.min_sample / first))
        cost += timed(step, repeats[name]) * (repeats[name] + (repeats[name] > 1))
    names = list(steps)
    samples: Samples = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.disable()  # as timeit does: a collection would be billed to whoever's turn it is
    try:
        for index in range(plan.rounds(cost)):
            turn = index // 2 % len(names)
            order = names[turn:] + names[:turn]
            for name in order if index % 2 == 0 else reversed(order):
                if repeats[name] > 1:
                    steps[name]()
                samples[name].append(timed(steps[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples
