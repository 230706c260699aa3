"""Time per element along sweeps: points, one point's measurement, the table."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch

from benchmarks.contestants import FLOOR, MAKERS, forced
from benchmarks.method import Plan, ratios, spreads, verdict
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, Rows
from benchmarks.shapes import Shape
from fastopt import _core


@dataclass(frozen=True)
class Point:
    """One measurement of a sweep: its place on the axis, the tensors, the threads."""

    sweep: str
    x: int
    shapes: list[Shape]
    threads: int
    isas: tuple[str, ...] = ()  # fastopt takes part with each of them, instead of with its best


def sweeps(threads: int, quick: bool) -> Iterator[Point]:
    """All points; the quick ones are of the same sweeps, cut short."""

    def half_decades(first: int, last: int) -> Iterator[int]:
        return (round(10 ** (half / 2)) for half in range(2 * first, 2 * last + 1))

    for n in half_decades(2, 3 if quick else 8):
        yield Point("elements", n, [(n,)], threads)
    elements = 100 if quick else 10**6
    for n in half_decades(0, 1 if quick else 4):
        yield Point("tensors", n, [(elements // n,)] * n, threads)
    counts = sorted({*(2**k for k in range(threads.bit_length())), threads})
    for sweep, elements in (("threads", 2**24), ("threads-cached", 2**18)):
        for n in counts:
            yield Point(sweep, n, [(1000 if quick else elements,)], n)
    for n in (100, 1000) if quick else (10**3, 10**4, 10**5, 10**6, 10**7):
        yield Point("isa", n, [(n,)], threads, tuple(_core.supported_isas()))


def measure(point: Point, algorithm: str, dtype: str, plan: Plan) -> Record:
    """Check and time one point: the package and the quickest of torch's for it."""
    torchs = "torch.foreach" if algorithm == "RMSprop" else "torch.fused"
    ours = {"fastopt": MAKERS["fastopt"]}
    if point.isas:
        ours = {f"fastopt.{isa}": forced(MAKERS["fastopt"], isa) for isa in point.isas}
    before = torch.get_num_threads()
    torch.set_num_threads(point.threads)
    try:
        problem = Problem(point.shapes, ALGORITHMS[algorithm], DTYPES[dtype])
        found = race(problem, {**ours, torchs: MAKERS[torchs]}, plan)
    finally:
        torch.set_num_threads(before)
    judgement = "wrong" if ours.keys() & found["wrong"] else verdict(plan.quick, False)
    about = {"sweep": point.sweep, "x": point.x, "threads": point.threads}
    return about | {"algorithm": algorithm, "dtype": dtype} | found | {"verdict": judgement}


def table(found: Record) -> pd.DataFrame:
    """A line a point: everybody's ns per element, with the time over the floor's."""
    lines = []
    for row in found["rows"]:
        over = ratios(row["samples"], FLOOR)
        lines.append(
            {"sweep": row["sweep"], "at": f"{row['x']:,}", "threads": str(row["threads"])}
            | {
                name: f"{time.median * 1e9 / row['elements']:.3g} ({over[name].median:.2f}x)"
                for name, time in spreads(row["samples"]).items()
            }
            | dict.fromkeys(row["wrong"], "**wrong**")
        )
    return pd.DataFrame(lines).fillna("")


def rows(arguments: argparse.Namespace, plan: Plan) -> Rows:
    return {
        f"{point.sweep}/{point.x}": partial(
            measure, point, arguments.algorithm, arguments.dtype, plan
        )
        for point in sweeps(torch.get_num_threads(), plan.quick)
    }


QUESTION = Question(
    "curves",
    "time per element against elements, tensors, threads, instruction set",
    rows,
    table,
    Plan(budget=0.5),
    forces=False,
    options={
        "--algorithm": {"choices": ALGORITHMS, "default": "Adam"},
        "--dtype": {"choices": DTYPES, "default": "fp32"},
    },
    about=lambda: {"notes": ["ns per element, medians (and over the floor's time)"]},
)
