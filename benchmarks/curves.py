"""Time per element along four sweeps: points, the sweeps, one point's measurement, the command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from rich.text import Text
from torch import Tensor

from benchmarks import plots, record
from benchmarks.contestants import MAKERS, Maker
from benchmarks.method import QUICK, Plan, paired, spread
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import FLOOR, race
from benchmarks.record import Record
from benchmarks.shapes import Shape, numel
from benchmarks.table import STYLES, new_table, ratio

HELP = "time per element against elements, tensors, threads, instruction set; plots from the JSON"


@dataclass(frozen=True)
class Point:
    """One measurement of a sweep: its place on the axis, the tensors, the threads."""

    sweep: str
    x: int
    shapes: list[Shape]
    threads: int
    isas: tuple[str, ...] = ()  # fastopt takes part with each of them, instead of with its best


def _half_decades(first: int, last: int) -> Iterator[int]:
    """`first` and `last` as powers of ten, two points per decade."""
    for half in range(2 * first, 2 * last + 1):
        yield round(10 ** (half / 2))


def by_elements(threads: int, last: int = 8) -> list[Point]:
    """One tensor of 1e2 elements and more."""
    return [Point("elements", n, [(n,)], threads) for n in _half_decades(2, last)]


def by_tensors(threads: int, elements: int = 10**6, last: int = 4) -> list[Point]:
    """`elements` in 1 tensor and more."""
    return [Point("tensors", n, [(elements // n,)] * n, threads) for n in _half_decades(0, last)]


def by_threads(threads: int, elements: int = 2**24, sweep: str = "threads") -> list[Point]:
    """One tensor of `elements` with 1 thread and more."""
    counts = sorted({*(2**k for k in range(threads.bit_length())), threads})
    return [Point(sweep, n, [(elements,)], n) for n in counts]


def by_isa(threads: int, sizes: Sequence[int] = (10**3, 10**4, 10**5, 10**6, 10**7)) -> list[Point]:
    """One tensor of each size with every instruction set that this processor can run."""
    from fastopt import _core

    isas = tuple(_core.supported_isas())
    return [Point("isa", n, [(n,)], threads, isas) for n in sizes]


def sweeps(threads: int, quick: bool) -> list[Point]:
    """All points; the quick ones are of the same sweeps, cut short."""
    if quick:
        return [
            *by_elements(threads, last=3),
            *by_tensors(threads, elements=100, last=1),
            *by_threads(threads, elements=1000),
            *by_isa(threads, sizes=(100, 1000)),
        ]
    return [
        *by_elements(threads),
        *by_tensors(threads),
        *by_threads(threads),
        *by_threads(threads, elements=2**18, sweep="threads-cached"),
        *by_isa(threads),
    ]


def contestants(algorithm: str) -> list[str]:
    """The package and the quickest of torch's for it; at 1e8 elements a third would not fit."""
    return ["fastopt", "torch.foreach" if algorithm == "RMSprop" else "torch.fused"]


def with_isa(make: Maker, isa: str) -> Maker:
    """`make`'s optimizer, whose steps run with the instruction set `isa`."""
    from fastopt import _core

    def maker(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer = make(cls, params, options)
        step = optimizer.step

        def selected() -> None:
            best = _core.isa()
            _core.select_isa(isa)
            step()
            _core.select_isa(best)  # the floor runs with it

        optimizer.step = selected  # type: ignore[method-assign, assignment]
        return optimizer

    return maker


def measure(
    point: Point, algorithm: str, dtype: str, plan: Plan, makers: Mapping[str, Maker] = MAKERS
) -> Record:
    """Check and time one point."""
    before = torch.get_num_threads()
    torch.set_num_threads(point.threads)
    try:
        problem = Problem(point.shapes, ALGORITHMS[algorithm], DTYPES[dtype])
        names = contestants(algorithm)
        if point.isas:
            ours = {f"fastopt.{isa}": with_isa(makers["fastopt"], isa) for isa in point.isas}
            names, makers = [*ours, *names[1:]], {**makers, **ours}
        outcome = race(problem, names, plan, makers)
    finally:
        torch.set_num_threads(before)
    return {
        "sweep": point.sweep,
        "x": point.x,
        "tensors": len(point.shapes),
        "elements": numel(point.shapes),
        "threads": point.threads,
        "wrong": outcome.wrong,
        "rounds": outcome.rounds,
        "samples": outcome.samples,
    }


def table(found: Record) -> Table:
    """A line a point: everybody's ns per element, and time over the floor's."""
    names = list(dict.fromkeys(name for point in found["points"] for name in point["samples"]))
    timed = [name for name in names if name != FLOOR]
    columns = [("sweep", "left"), ("at", "right"), ("tensors", "right"), ("threads", "right")]
    columns += [(f"{name} ns", "right") for name in names]
    columns += [(f"{name} / floor", "right") for name in timed]
    shown = new_table(found, columns, "ns per element, medians; time over the floor's")
    for point in found["points"]:
        samples = point["samples"]
        shown.add_row(
            point["sweep"],
            f"{point['x']:,}",
            f"{point['tensors']:,}",
            str(point["threads"]),
            *(
                f"{spread(samples[name]).median * 1e9 / point['elements']:.3g}"
                if name in samples
                else Text("wrong" * (name in point["wrong"]), STYLES["wrong"])
                for name in names
            ),
            *(
                ratio(asdict(spread(paired(samples[name], samples[FLOOR]))))
                if name in samples
                else ""
                for name in timed
            ),
        )
    return shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks curves`."""
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="Adam")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--quick", action="store_true", help="a few tiny points, times meaningless")
    parser.add_argument(
        "--budget", type=float, default=0.5, help="seconds per point (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/curves.json"))
    parser.add_argument(
        "--plot", action="store_true", help="measure nothing, plot the record at --out again"
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure all sweeps, save, plot from the file; 1 if a result was wrong."""
    if not arguments.plot:
        plan = QUICK if arguments.quick else Plan(budget=arguments.budget)
        result = record.header(
            "curves",
            algorithm=arguments.algorithm,
            dtype=arguments.dtype,
            quick=arguments.quick,
            **asdict(plan),
        )
        points = sweeps(torch.get_num_threads(), arguments.quick)
        result["points"] = [
            measure(point, arguments.algorithm, arguments.dtype, plan)
            for point in track(points, "points", auto_refresh=False)
        ]
        record.save(arguments.out, result)
    saved = record.load(arguments.out, "curves")
    for path in plots.save(saved, arguments.out):
        print(path)
    return int(any(point["wrong"] for point in saved["points"]))
