"""The table of CPU steps against torch's: the rows with their goals, one row's run, the command."""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import record
from benchmarks.contestants import MAKERS, PEERS, Maker
from benchmarks.method import QUICK, Plan, Spread, paired, spread
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import FLOOR, Outcome, race
from benchmarks.record import Record
from benchmarks.shapes import WORKS, Shape, numel
from benchmarks.table import display

HELP = "step time of every CPU work against torch's, each beside the floor of a bare stream"


@dataclass(frozen=True)
class Row:
    """One line of the table: a work, an optimizer, whom it races, what it must reach."""

    work: str
    algorithm: str
    dtype: str
    against: str  # a key of PEERS, or of tail.PEERS
    goal: float  # peer's time over fastopt's, at least
    floor_goal: float | None = None  # fastopt's time over the floor's, at most

    @property
    def id(self) -> str:
        """How --only and compare address the row."""
        return f"{self.work}/{self.algorithm}/{self.dtype}"


STREAMED = [
    Row(work, algorithm, "fp32", "fused", 1.0, floor_goal=1.10)
    for work in ("1x64M", "gpt2")
    for algorithm in ("Adam", "AdamW", "SGD-momentum")
]

ROWS = [
    *STREAMED,
    Row("1x64M", "RMSprop", "fp32", "best", 5.0),
    Row("gpt2", "RMSprop", "fp32", "best", 5.0),
    Row("resnet50", "AdamW", "fp32", "fused", 1.1),
    Row("resnet50", "RMSprop", "fp32", "default", 2.0),
    Row("100x256x256", "Adam", "fp32", "fused", 1.3),
    Row("100x256x256", "Adam", "bf16", "fused", 1.8),
    Row("1000x64", "Adam", "fp32", "fused", 20.0),
    Row("1000x64", "SGD-momentum", "fp32", "fused", 8.0),
    Row("1000x64", "RMSprop", "fp32", "best", 40.0),
    Row("mlp", "Adam", "fp32", "fused", 4.5),
    Row("mlp", "RMSprop", "fp32", "best", 7.0),
    Row("mlp", "SGD-plain", "fp32", "default", 1.5),
    # Other works, states and dtypes: not slower than the quickest of torch's that is right.
    Row("vit-b16", "AdamW", "fp32", "fused", 1.0),
    Row("vit-b16", "AdamW", "bf16", "fused", 1.0),
    Row("resnet50", "SGD-nesterov", "fp32", "fused", 1.0),
    Row("resnet50", "RMSprop-momentum", "fp32", "best", 1.0),
    Row("100x256x256", "Adam-amsgrad", "fp32", "fused", 1.0),
    Row("100x256x256", "RMSprop-centered", "fp32", "best", 1.0),
    Row("100x256x256", "Adam", "fp64", "fused", 1.0),
    Row("100x256x256", "SGD-momentum", "bf16", "any", 1.0),
    Row("100x256x256", "RMSprop", "bf16", "best", 1.0),
]

# Odd and past two vectors of any ISA, so that a quick run goes through bodies and tails.
QUICK_ELEMENTS = 257

# Ratios whose middle half is wider than this claim nothing. On a nearly idle machine it was 0.01
# to 0.15 between identical contestants; beside processes busy on all cores, 0.5 and more.
NOISY = 0.3


def work_shapes(work: str, quick: bool) -> Sequence[Shape]:
    """The shapes of a work; of a quick run, as many tensors, none larger than QUICK_ELEMENTS."""
    shapes = WORKS[work]()
    return [(min(numel([shape]), QUICK_ELEMENTS),) for shape in shapes] if quick else shapes


def run_row(
    row: Row, plan: Plan, makers: Mapping[str, Maker] = MAKERS, quick: bool = False
) -> Record:
    """Check and time one row; the record holds every sample and what follows from them."""
    shapes = work_shapes(row.work, quick)
    problem = Problem(shapes, ALGORITHMS[row.algorithm], DTYPES[row.dtype])
    outcome = race(problem, ["fastopt", *PEERS[row.against]], plan, makers)
    return {
        "id": row.id,
        **asdict(row),
        "tensors": len(shapes),
        "elements": problem.elements,
        "bytes_per_param": problem.algorithm.bytes_per_param(problem.dtype),
        "errors": outcome.errors,
        "rounds": outcome.rounds,
        "samples": outcome.samples,
        **conclude(row, outcome, quick),
    }


def conclude(
    row: Row, outcome: Outcome, quick: bool, peers: Mapping[str, Sequence[str]] = PEERS
) -> Record:
    """Verdict, peer and ratios; of a row in which fastopt or every peer is wrong, the verdict."""
    times = {name: spread(samples) for name, samples in outcome.samples.items()}
    right = [name for name in peers[row.against] if name in times]
    if "fastopt" not in times or not right:
        return {"verdict": "wrong", "wrong": outcome.wrong}
    peer = min(right, key=lambda name: times[name].median)
    fast = outcome.samples["fastopt"]
    ratio = spread(paired(outcome.samples[peer], fast))
    floor_ratio = spread(paired(fast, outcome.samples[FLOOR]))
    missed = []
    if ratio.median < row.goal:
        missed.append("ratio")
    if row.floor_goal is not None and floor_ratio.median > row.floor_goal:
        missed.append("floor")
    return {
        "verdict": _verdict(missed, [ratio] + [floor_ratio] * (row.floor_goal is not None), quick),
        "missed": missed,
        "wrong": outcome.wrong,
        "peer": peer,
        "times": {name: asdict(time) for name, time in times.items()},
        "ratio": asdict(ratio),
        "floor_ratio": asdict(floor_ratio),
    }


def _verdict(missed: list[str], claims: list[Spread], quick: bool) -> str:
    if quick:
        return "right"
    if any(claim.relative > NOISY for claim in claims):
        return "noisy"
    return "short" if missed else "ok"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks cpu`."""
    parser.add_argument("--list", action="store_true", help="print the rows' ids and stop")
    parser.add_argument(
        "--only", metavar="PATTERN", default="*", help="rows whose id has this glob in it"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny tensors: checks results, times mean nothing"
    )
    parser.add_argument(
        "--budget", type=float, default=Plan.budget, help="seconds per row (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, help="threads for torch and fastopt")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/cpu.json"))


def main(arguments: argparse.Namespace) -> int:
    """Run the chosen rows; 1 if a result was wrong, however fast or slow the rest was."""
    rows = [row for row in ROWS if fnmatch.fnmatch(row.id, f"*{arguments.only}*")]
    if arguments.list:
        print("\n".join(row.id for row in rows))
        return 0
    if not rows:
        raise SystemExit(f"no row matches {arguments.only!r}; see --list")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    plan = QUICK if arguments.quick else Plan(budget=arguments.budget)
    result = record.header("cpu", quick=arguments.quick, **asdict(plan))
    result["rows"] = []
    with display(result, total=len(rows)) as shown:
        for row in rows:
            shown.start(row.id)
            result["rows"].append(run_row(row, plan, quick=arguments.quick))
            record.save(arguments.out, result)  # after every row: an interrupted run is kept
            shown.done()
    print(f"{arguments.out}: every sample")
    return int(any(row["verdict"] == "wrong" for row in result["rows"]))
