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
    """What a race found: everything by contestant, the samples in seconds per step and by round."""

    errors: dict[str, float] = field(default_factory=dict)  # in tolerances
    samples: Samples = field(default_factory=dict)
    rounds: list[int] = field(default_factory=list)  # of each placement, in the samples' order
    bytes: dict[str, float] = field(default_factory=dict)  # per parameter
    failed: dict[str, str] = field(default_factory=dict)  # why one could not run at all

    @property
    def wrong(self) -> list[str]:
        """Contestants that disagreed with the reference; they are not timed."""
        return [name for name, error in self.errors.items() if not error <= 1]


def race(
    problem: Problem,
    names: Sequence[str],
    plan: Plan,
    makers: Mapping[str, contestants.Maker] = contestants.MAKERS,
    coarse: Mapping[str, float | None] | None = None,
) -> Outcome:
    """Check every contestant, then time those that are right, and the floor, in turn.

    `coarse` has the tolerances of quantised contestants (contestants.build). A contestant that
    raises is left out with its reason, except fastopt, whose error is raised.
    """
    outcome = Outcome()
    order = [*names, FLOOR]
    placements = min(len(order), plan.placements or len(order))
    share = replace(
        plan,
        budget=plan.budget / placements,
        min_rounds=math.ceil(plan.min_rounds / placements),
        max_rounds=math.ceil(plan.max_rounds / placements),
    )
    for placement in range(placements):
        first = placement * len(order) // placements
        steps: dict[str, Callable[[], object]] = {}
        for name in order[first:] + order[:first]:
            if name == FLOOR:
                steps[name] = contestants.floor(problem)
            elif name not in outcome.wrong and name not in outcome.failed:
                step = _checked(name, makers[name], problem, outcome, (coarse or {}).get(name))
                if step:
                    steps[name] = step
        if outcome.wrong and steps.keys() == {FLOOR}:
            break
        samples = interleave(steps, share)
        outcome.rounds.append(len(samples[FLOOR]))
        for name, times in samples.items():
            outcome.samples.setdefault(name, []).extend(times)
    for name in [*outcome.wrong, *outcome.failed]:  # also one that was right until its last build
        outcome.samples.pop(name, None)
    return outcome


def _checked(
    name: str,
    make: contestants.Maker,
    problem: Problem,
    outcome: Outcome,
    coarse: float | None,
) -> contestants.Step | None:
    """The step of a contestant whose result is right; what was found goes into `outcome`."""
    try:
        contestant = contestants.build(make, problem, coarse)
    except Exception as error:  # of other people's code, which may raise anything
        if name == "fastopt":
            raise
        outcome.failed[name] = _reason(error)
        return None
    outcome.errors[name] = _worse(outcome.errors.get(name, 0.0), contestant.error)
    outcome.bytes[name] = contestant.bytes_per_param
    return None if name in outcome.wrong else contestant.step


def _reason(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, ModuleNotFoundError):
        return "not installed" if error.name is None else f"{error.name} is not installed"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def _worse(a: float, b: float) -> float:
    """The larger error; a NaN is larger than anything."""
    return b if math.isnan(b) else max(a, b)
