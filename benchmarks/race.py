"""One race: build the contestants, check them, time them beside the floor, several times over.

Where a contestant's tensors lie in memory is worth some percent: of three identical fused Adams
over 64M elements, the one built first ran 1 to 4% slower than the others for as long as it lived,
in whatever order they took turns. So everything is built anew for every placement, each time in a
rotated order, until everybody has been built first, second, ..., last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from benchmarks.contestants import FLOOR, Maker, build, floor
from benchmarks.method import Clock, Plan, Samples, Step, interleave, timed
from benchmarks.problem import Problem
from benchmarks.record import Record


def race(
    problem: Problem,
    makers: Mapping[str, Maker],
    plan: Plan,
    coarse: Mapping[str, float | None] | None = None,
    clock: Clock = timed,
    floor: Callable[[Problem], Step] = floor,
    ready: Callable[[Step], Step] = lambda step: step,
) -> Record:
    """Check everybody in `makers`, then time those that are right, and the floor, in turn.

    `coarse` has the tolerances of quantised contestants (contestants.build); `ready` makes of a
    checked step what is timed. One that raises is absent with its reason, except fastopt, whose
    error is raised. What is found is the part of a row that all races share: see record.py.
    """
    errors: dict[str, float] = {}
    moved: dict[str, float] = {}
    absent: dict[str, str] = {}
    samples: Samples = {}
    rounds: list[int] = []
    order = [*makers, FLOOR]
    placements = min(len(order), plan.placements or len(order))
    share = replace(
        plan,
        budget=plan.budget / placements,
        min_rounds=math.ceil(plan.min_rounds / placements),
        max_rounds=math.ceil(plan.max_rounds / placements),
    )
    for placement in range(placements):
        first = placement * len(order) // placements
        steps: dict[str, Step] = {}
        for name in order[first:] + order[:first]:
            if name == FLOOR:
                steps[name] = floor(problem)
                continue
            if name in absent or not errors.get(name, 0.0) <= 1:
                continue
            try:
                made = build(makers[name], problem, (coarse or {}).get(name))
            except Exception as error:  # of other people's code, which may raise anything
                if name == "fastopt":
                    raise
                absent[name] = _reason(error)
                continue
            errors[name] = float(np.maximum(errors.get(name, 0.0), made.error))  # NaN is the worst
            moved[name] = made.bytes_per_param
            if made.error <= 1:
                steps[name] = ready(made.step)
        if steps.keys() == {FLOOR}:
            break
        placed = interleave(steps, share, clock)
        rounds.append(len(placed[FLOOR]))
        for name, times in placed.items():
            samples.setdefault(name, []).extend(times)
    wrong = [name for name, error in errors.items() if not error <= 1]
    for name in [*wrong, *absent]:  # also one that was right until its last build
        samples.pop(name, None)
    return {
        "tensors": len(problem.shapes),
        "elements": problem.elements,
        "bytes_per_param": problem.algorithm.bytes_per_param(problem.dtype),
        "bytes": moved,
        "absent": absent,
        "errors": errors,
        "wrong": wrong,
        "rounds": rounds,
        "samples": samples,
    }


def _reason(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name or 'it'} is not installed"
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:200]
