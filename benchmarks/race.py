"""One race: build the contestants, check them, time them beside the floor, several times over.

Where a contestant's tensors lie in memory is worth some percent: of three identical fused Adams
over 64M elements, the one built first ran 1 to 4% slower than the others for as long as it lived,
in whatever order they took turns. So everything is built anew for every placement, each time in a
rotated order, until everybody has been built first, second, ..., last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks import contestants
from benchmarks.method import Plan, Samples, interleave
from benchmarks.problem import Problem

FLOOR = "floor"


@dataclass
class Outcome:
    """Errors in tolerances by contestant, and seconds per step by contestant and round."""

    errors: dict[str, float] = field(default_factory=dict)
    samples: Samples = field(default_factory=dict)
    rounds: list[int] = field(default_factory=list)  # of each placement, in the samples' order

    @property
    def wrong(self) -> list[str]:
        """Contestants that disagreed with the reference; if there are any, nobody is timed."""
        return [name for name, error in self.errors.items() if not error <= 1]


def race(
    problem: Problem,
    names: Sequence[str],
    plan: Plan,
    makers: Mapping[str, contestants.Maker] = contestants.MAKERS,
) -> Outcome:
    """Check every contestant, then time all of them and the floor in turn."""
    outcome = Outcome()
    order = [*names, FLOOR]
    share = replace(
        plan,
        budget=plan.budget / len(order),
        min_rounds=math.ceil(plan.min_rounds / len(order)),
        max_rounds=math.ceil(plan.max_rounds / len(order)),
    )
    for first in range(len(order)):
        steps: dict[str, Callable[[], object]] = {}
        for name in order[first:] + order[:first]:
            if name == FLOOR:
                steps[name] = contestants.floor(problem)
                continue
            contestant = contestants.build(makers[name], problem)
            steps[name] = contestant.step
            outcome.errors[name] = _worse(outcome.errors.get(name, 0.0), contestant.error)
        if outcome.wrong:
            return Outcome(outcome.errors)
        samples = interleave(steps, share)
        outcome.rounds.append(len(samples[FLOOR]))
        for name in order:
            outcome.samples.setdefault(name, []).extend(samples[name])
    return outcome


def _worse(a: float, b: float) -> float:
    """The larger error; a NaN is larger than anything."""
    return b if math.isnan(b) else max(a, b)
