"""How time is taken and read: the plan of a row, interleaved rounds, spreads, ratios, verdicts."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

Samples = dict[str, list[float]]
Step = Callable[[], object]
Clock = Callable[[Step, int], float]  # seconds per step over so many steps

# Ratios whose middle half is wider than this claim nothing. On a nearly idle machine it was 0.01
# to 0.15 between identical contestants; beside processes busy on all cores, 0.5 and more.
NOISY = 0.3


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

    def text(self, missed: bool = False) -> str:
        """A ratio in a table, bold where it misses its goal."""
        bold = "**" if missed else ""
        return f"{bold}{self.median:.2f}x{bold} [{self.q1:.2f}, {self.q3:.2f}]"


def spreads(samples: Samples | pd.DataFrame) -> dict[str, Spread]:
    """Everybody's spread over the rounds; quartiles are interpolated between samples."""
    quartiles = pd.DataFrame(samples).quantile([0.5, 0.25, 0.75])
    return {str(name): Spread(*column) for name, column in quartiles.items()}


def ratios(samples: Samples, base: str) -> dict[str, Spread]:
    """Everybody's time over `base`'s, by round: both saw the same machine, milliseconds apart.

    Nobody's where `base` was not timed.
    """
    if base not in samples:
        return {}
    times = pd.DataFrame(samples)
    return spreads(times.div(times[base], axis=0))


def verdict(quick: bool, missed: bool, *claims: Spread) -> str:
    """What a row may say whose results are right."""
    if quick:
        return "right"
    if any(claim.relative > NOISY for claim in claims):
        return "noisy"
    return "short" if missed else "ok"


@dataclass(frozen=True)
class Plan:
    """How long a row may take: seconds, rounds, the shortest sample worth a clock reading."""

    budget: float = 3.0
    min_rounds: int = 7
    max_rounds: int = 101
    min_sample: float = 2e-3
    placements: int | None = None  # how often everything is built anew; None: see race.py
    quick: bool = False  # results are checked, on tiny tensors; times mean nothing

    def rounds(self, seconds_per_round: float) -> int:
        """Rounds that fit the budget, within the plan's bounds."""
        fitting = int(self.budget / seconds_per_round)
        return max(self.min_rounds, min(self.max_rounds, fitting))


QUICK = Plan(budget=0.0, min_rounds=2, max_rounds=2, min_sample=0.0, quick=True)


def timed(step: Step, repeats: int) -> float:
    """Seconds per step over `repeats` steps."""
    loop = range(repeats)
    begin = time.perf_counter_ns()
    for _ in loop:
        step()
    return (time.perf_counter_ns() - begin) * 1e-9 / repeats


def interleave(steps: Mapping[str, Step], plan: Plan, clock: Clock = timed) -> Samples:
    """Seconds per step of every contestant in every round; index i of all lists is round i.

    Contestants take turns. The order rotates and every second round runs backwards, so that each
    is as often before as after any other. A step too short for one clock reading is repeated, and
    then begins with an untimed step: such tensors fit a cache, which the contestant before emptied.
    """
    repeats: dict[str, int] = {}
    cost = 0.0
    for name, step in steps.items():
        step()
        first = clock(step, 1)
        repeats[name] = max(1, math.ceil(plan.min_sample / first))
        cost += clock(step, repeats[name]) * (repeats[name] + (repeats[name] > 1))
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
                samples[name].append(clock(steps[name], repeats[name]))
    finally:
        if collecting:
            gc.enable()
    return samples
