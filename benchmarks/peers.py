"""Everybody on a few works: the rows, one row's run, the table of contestants, the command."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.table import Table
from rich.text import Text

from benchmarks import libraries, record
from benchmarks.cpu import NOISY, work_shapes
from benchmarks.libraries import GPU_ONLY, LIBRARIES
from benchmarks.method import QUICK, Plan, paired, spread
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import FLOOR, Outcome, race
from benchmarks.record import Record
from benchmarks.table import STYLES, display, microseconds, new_table, ratio

HELP = "every contestant, other libraries and torch.compile among them, on a few works"


@dataclass(frozen=True)
class Row:
    """One work for everybody."""

    work: str
    algorithm: str
    dtype: str = "fp32"

    @property
    def id(self) -> str:
        """How compare addresses the row."""
        return f"{self.work}/{self.algorithm}/{self.dtype}"


ROWS = [
    Row("1x16M", "AdamW"),
    Row("100x256x256", "AdamW"),
    Row("1000x64", "AdamW"),
    Row("mlp", "AdamW"),
    Row("100x256x256", "RMSprop"),
    Row("mlp", "RMSprop"),
]

# torch.compile unrolls a step over its tensors. 100 took it 30 s here, 1000 took 292.
COMPILED = "torch.compiled"
MOST_COMPILED = 100

# Every placement builds everybody anew, which compiles again.
PLACEMENTS = 2


def run_row(row: Row, plan: Plan, quick: bool = False) -> Record:
    """Check everybody, time those who are right; the record says why others are not in it."""
    shapes = work_shapes(row.work, quick)
    algorithm = ALGORITHMS[row.algorithm]
    problem = Problem(shapes, algorithm, DTYPES[row.dtype])
    absent, entrants = {}, []
    for name, library in LIBRARIES.items():
        if algorithm.cls not in library.classes:
            absent[name] = f"has no {algorithm.cls}"
        elif library.version is None and name != "fastopt":  # that runs from a tree as well
            absent[name] = f"{library.distribution} is not installed"
        elif name == COMPILED and len(shapes) > MOST_COMPILED:
            absent[name] = f"left out: compiles for minutes over {MOST_COMPILED} tensors"
        else:
            entrants.append(name)
    makers = {name: library.make for name, library in LIBRARIES.items()}
    coarse = {name: library.coarse for name, library in LIBRARIES.items()}
    outcome = race(problem, entrants, plan, makers, coarse)
    return {
        "id": row.id,
        **asdict(row),
        "tensors": len(shapes),
        "elements": problem.elements,
        "bytes_per_param": algorithm.bytes_per_param(problem.dtype),
        "bytes": outcome.bytes,
        "absent": absent | outcome.failed | GPU_ONLY,
        "errors": outcome.errors,
        "coarse": {name: share for name, share in coarse.items() if share and name in entrants},
        "wrong": outcome.wrong,
        "rounds": outcome.rounds,
        "samples": outcome.samples,
        **conclude(outcome, quick),
    }


def conclude(outcome: Outcome, quick: bool) -> Record:
    """Everybody's time, its ratio to fastopt's, and the quickest of the others as the peer."""
    times = {name: spread(samples) for name, samples in outcome.samples.items()}
    others = [name for name in times if name not in ("fastopt", FLOOR)]
    if "fastopt" not in times or not others:
        return {"verdict": "wrong"}
    fast = outcome.samples["fastopt"]
    ratios = {name: spread(paired(outcome.samples[name], fast)) for name in others}
    peer = min(others, key=lambda name: ratios[name].median)
    noisy = ratios[peer].relative > NOISY
    return {
        "verdict": "right" if quick else "noisy" if noisy else "ok",
        "peer": peer,
        "times": {name: asdict(time) for name, time in times.items()},
        "ratio": asdict(ratios[peer]),
        "ratios": {name: asdict(value) for name, value in ratios.items()},
        "floor_ratio": asdict(spread(paired(fast, outcome.samples[FLOOR]))),
    }


COLUMNS = (
    ("work", "left"),
    ("contestant", "left"),
    ("B/param", "right"),
    ("us", "right"),
    ("time over fastopt's", "right"),
    ("", "left"),
)


def _cells(row: Record) -> Iterator[list[str | Text]]:
    """The row's contestants, quickest first, then those without a time, with the reason."""
    times = row.get("times", {})
    for name in sorted(times, key=lambda name: float(times[name]["median"])):
        if name == FLOOR:
            continue
        yield [
            name,
            f"{row['bytes'][name]:.4g}",
            microseconds(times[name]["median"]),
            ratio(row["ratios"][name]) if name in row["ratios"] else "1x",
            f"within {row['coarse'][name] * 100:g}% of the update" if name in row["coarse"] else "",
        ]
    for name in row["wrong"]:
        error = Text(f"wrong: {row['errors'][name]:.3g} tolerances off", STYLES["wrong"])
        yield [name, "", "", "", error]
    for why in sorted(set(row["absent"].values()) - set(GPU_ONLY.values())):
        names = [name for name, reason in row["absent"].items() if reason == why]
        yield ["absent", "", "", "", Text(f"{why}: {', '.join(names)}", "dim")]


def table(found: Record) -> Table:
    """All rows, a section each."""
    versions = ", ".join(f"{name} {v or 'absent'}" for name, v in found["libraries"].items())
    gpu_only = "; ".join(f"{name} ({why})" for name, why in GPU_ONLY.items())
    shown = new_table(found, COLUMNS, versions, f"not on a CPU: {gpu_only}")
    for row in found["rows"]:
        for index, cells in enumerate(_cells(row)):
            shown.add_row("" if index else f"{row['work']} {row['algorithm']}", *cells)
        shown.add_section()
    return shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks peers`."""
    parser.add_argument(
        "--quick", action="store_true", help="the smallest work alone: times mean nothing"
    )
    parser.add_argument(
        "--budget", type=float, default=8.0, help="seconds per work (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads for everybody")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/peers.json"))


def main(arguments: argparse.Namespace) -> int:
    """Run all works; 1 if fastopt's result was wrong. That of a peer is reported, no more."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plan = Plan(budget=arguments.budget, placements=PLACEMENTS)
    rows = ROWS
    if arguments.quick:
        plan, rows = QUICK, [row for row in ROWS if row.work == "mlp"]
    found = record.header("peers", quick=arguments.quick, **asdict(plan))
    found |= {"libraries": libraries.versions(), "rows": []}
    with display(found, len(rows), table) as shown:
        for row in rows:
            shown.start(row.id)
            found["rows"].append(run_row(row, plan, arguments.quick))
            record.save(arguments.out, found)
            shown.done()
    print(f"{arguments.out}: every sample")
    return int(any(row["verdict"] == "wrong" for row in found["rows"]))
