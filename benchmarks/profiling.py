"""Where a step's time goes: its probes, their rounds, the parts they add up to, table, command.

A step is read where its checks end and its writes begin; smaller parts are run alone. In each half
one part is the rest of that half, so that the parts add up; what of the whole step is in neither
half nor in the Python around them is shown as not attributed.
"""

from __future__ import annotations

import argparse
import fnmatch
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from benchmarks import contestants, record
from benchmarks.method import Samples
from benchmarks.record import Record
from benchmarks.shapes import WORKS, Shape
from benchmarks.table import display, new_table

CASES = [(work, "Adam") for work in ("mlp", "1000x64", "resnet50", "1x64M")]

# Written between two steps of the cold rounds: more than a core's own caches hold.
EVICTING_FLOATS = 2**23


def _probes(shapes: list[Shape], algorithm: str) -> dict[str, Callable[[], Mapping[str, int]]]:
    """What one round runs, in nanoseconds: a probe of the step's two halves, the parts alone."""
    from benchmarks.pieces import Pieces, region
    from fastopt import _core

    whole = Pieces(shapes, algorithm)
    idle = Pieces([(1,)] * len(shapes), algorithm).drop_gradients()
    tiny = Pieces([(1,)], algorithm).drop_gradients()
    team = _core.useful_threads(whole.problem.elements, whole.threads)

    def halves() -> dict[str, int]:
        checked: list[int] = []
        begin = time.perf_counter_ns()
        whole.engine(lambda: checked.append(time.perf_counter_ns()))
        end = time.perf_counter_ns()
        return {"checks": checked[0] - begin, "writes": end - checked[0]}

    def alone(name: str, call: Callable[[], object]) -> Callable[[], dict[str, int]]:
        def probe() -> dict[str, int]:
            begin = time.perf_counter_ns()
            call()
            return {name: time.perf_counter_ns() - begin}

        return probe

    calls = {
        "step": whole.step,
        "idle step": tiny.step,
        "idle engine": tiny.engine,
        "no gradients": idle.engine,
        "no gradients, .grad": idle.read_grads,
        ".grad": whole.read_grads,
        "reads": whole.read_all,
        "versions": whole.bump_versions,
        "region": region(team),
        "no region": region(1),
        "floor": contestants.floor(whole.problem, team),
    }
    return {"halves": halves, **{name: alone(name, call) for name, call in calls.items()}}


def measure(work: str, algorithm: str, shapes: list[Shape], budget: float) -> Record:
    """The samples of one case, with hot caches and with cold ones, and the parts of its step."""
    probes = _probes(shapes, algorithm)
    evicting = torch.zeros(EVICTING_FLOATS)

    def rounds(names: list[str], before: Callable[[str], object], seconds: float) -> Samples:
        samples: dict[str, list[float]] = {}
        end = time.perf_counter() + seconds
        index = 0
        while index < 3 or (time.perf_counter() < end and index < 1000):
            for name in names if index % 2 == 0 else reversed(names):
                before(name)
                for part, ns in probes[name]().items():
                    samples.setdefault(part, []).append(ns * 1e-9)
            index += 1
        return samples

    hot = rounds(list(probes), lambda name: probes[name](), budget)
    cold = rounds(["halves", "step"], lambda name: evicting.add_(1), budget / 2)
    medians = {name: statistics.median(times) for name, times in hot.items()}
    return {
        "id": f"{work}/{algorithm}",
        "tensors": len(shapes),
        "samples": hot,
        "cold_samples": cold,
        "seconds": medians["step"],
        "floor_seconds": medians["floor"],
        "parts": [vars(part) for part in parts(medians)],
        "cold": {name: statistics.median(times) for name, times in cold.items()},
        "verdict": "right",
    }


@dataclass(frozen=True)
class Part:
    """A part of a step; one that belongs to the half above it has `of`."""

    name: str
    seconds: float
    how: str
    of: str = ""


CHECKS, WRITES = "before the first write", "writes"


def parts(medians: Mapping[str, float]) -> list[Part]:
    """The parts of a step from the probes' medians: those without `of` add up to the step."""
    python = medians["idle step"] - medians["idle engine"]
    inside_checks = [
        Part(
            "containers, hyperparameters",
            medians["no gradients"] - medians["no gradients, .grad"],
            "alone",
            CHECKS,
        ),
        Part(".grad of every parameter", medians[".grad"], "alone", CHECKS),
        Part("tensors read by DLPack", medians["reads"], "alone", CHECKS),
    ]
    inside_writes = [
        Part("version counters", medians["versions"], "alone", WRITES),
        Part("threads called together", medians["region"] - medians["no region"], "alone", WRITES),
    ]

    def rest(half: str, name: str, inside: list[Part]) -> Part:
        seconds = medians[half] - sum(part.seconds for part in inside)
        return Part(name, seconds, "rest of its half", inside[0].of)

    left = medians["step"] - python - medians["checks"] - medians["writes"]
    return [
        Part("Python around the engine", python, "alone"),
        Part(CHECKS, medians["checks"], "in the step"),
        *inside_checks,
        rest("checks", "layouts, overlaps, states found", inside_checks),
        Part(WRITES, medians["writes"], "in the step"),
        *inside_writes,
        rest("writes", "update of the elements", inside_writes),
        Part("not attributed", left, "rest of the step"),
    ]


def table(found: Record) -> Table:
    """A line a part, a column a case: microseconds and share of the step."""
    rows = found["rows"]
    columns = [("part", "left"), *((row["id"], "right") for row in rows), ("measured", "left")]
    shown = new_table(
        found,
        columns,
        "microseconds and share of the step, medians, with hot caches; measured alone: run by "
        "itself;\nin the step: read on the way; rest: what remains; cold caches: 32 MB were "
        "written between steps",
    )
    if not rows:
        return shown

    def cells(seconds: list[float]) -> list[str]:
        return [
            f"{s * 1e6:,.1f} {s / row['seconds']:5.0%}"
            for s, row in zip(seconds, rows, strict=True)
        ]

    for index, part in enumerate(rows[0]["parts"]):
        indent = "  " if part["of"] else ""
        seconds = [row["parts"][index]["seconds"] for row in rows]
        shown.add_row(indent + part["name"], *cells(seconds), part["how"])
    shown.add_section()
    shown.add_row("whole step", *cells([row["seconds"] for row in rows]), "whole")
    shown.add_row("floor: a bare stream", *cells([row["floor_seconds"] for row in rows]), "alone")
    for name, label in (("step", "whole step"), ("checks", CHECKS), ("writes", WRITES)):
        cold = [row["cold"][name] for row in rows]
        shown.add_row(
            f"cold caches: {label}", *cells(cold), "whole" if name == "step" else "in the step"
        )
    return shown


def main(arguments: argparse.Namespace) -> int:
    """Measure the chosen cases, save, print."""
    chosen = [case for case in CASES if fnmatch.fnmatch("/".join(case), f"*{arguments.only}*")]
    if arguments.list:
        print("\n".join("/".join(case) for case in chosen))
        return 0
    if not chosen:
        raise SystemExit(f"no case matches {arguments.only!r}; see --profile --list")
    result = record.header("profile", quick=arguments.quick, budget=arguments.budget)
    result["rows"] = []
    out = arguments.out or Path("build/benchmarks/profile.json")
    with display(result, len(chosen), table) as shown:
        for work, algorithm in chosen:
            shown.start(f"{work}/{algorithm}")
            shapes = WORKS[work]()
            if arguments.quick:
                shapes = [(7,) for _ in shapes[:10]]
            budget = 0.0 if arguments.quick else 2 * arguments.budget
            result["rows"].append(measure(work, algorithm, shapes, budget))
            record.save(out, result)
            shown.done()
    print(f"{out}: every sample")
    return 0
