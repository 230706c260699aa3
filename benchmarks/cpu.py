"""The table of CPU steps against torch's: rows with their goals, one row's run, the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from benchmarks.contestants import FLOOR, MAKERS, Maker
from benchmarks.method import Plan, ratios, spreads, verdict
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, each_of, microseconds, named
from benchmarks.shapes import WORKS, Shape, numel

# Whom a row races.
PEERS: dict[str, tuple[str, ...]] = {
    "fused": ("torch.fused",),
    "foreach": ("torch.foreach",),
    "default": ("torch.default",),
    "best": ("torch.default", "torch.foreach"),
    "any": ("torch.default", "torch.foreach", "torch.fused"),
}


@dataclass(frozen=True)
class Row:
    """One line of the table: a work, an optimizer, whom it races, what it must reach."""

    work: str
    algorithm: str
    dtype: str
    against: str  # a key of PEERS, or of tail.ENTRANTS; everybody: see peers.py
    goal: float | None = None  # peer's time over fastopt's, at least
    floor_goal: float | None = None  # fastopt's time over the floor's, at most

    @property
    def id(self) -> str:
        """How --only and compare address the row."""
        return f"{self.work}/{self.algorithm}/{self.dtype}"


ROWS = [
    *(
        Row(work, algorithm, "fp32", "fused", 1.0, floor_goal=1.10)
        for work in ("1x64M", "gpt2")
        for algorithm in ("Adam", "AdamW", "SGD-momentum")
    ),
    Row("1x64M", "Adam", "bf16", "fused", 1.3),
    Row("1x64M", "RMSprop", "fp32", "best", 5.0),
    Row("gpt2", "RMSprop", "fp32", "best", 5.0),
    Row("resnet50", "AdamW", "fp32", "fused", 1.1),
    Row("resnet50", "RMSprop", "fp32", "default", 2.0),
    Row("100x256x256", "Adam", "fp32", "fused", 1.3),
    Row("100x256x256", "Adam", "bf16", "fused", 1.8),
    Row("1000x64", "Adam", "fp32", "fused", 13.0),
    Row("1000x64", "SGD-momentum", "fp32", "fused", 8.0),
    Row("1000x64", "RMSprop", "fp32", "best", 22.0),
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


def work_shapes(work: str, quick: bool) -> Sequence[Shape]:
    """The shapes of a work; of a quick run, as many tensors, none larger than QUICK_ELEMENTS."""
    shapes = WORKS[work]()
    return [(min(numel([shape]), QUICK_ELEMENTS),) for shape in shapes] if quick else shapes


def run_row(row: Row, plan: Plan, makers: Mapping[str, Maker] = MAKERS) -> Record:
    """Check and time one row."""
    shapes = work_shapes(row.work, plan.quick)
    problem = Problem(shapes, ALGORITHMS[row.algorithm], DTYPES[row.dtype])
    entrants = {name: makers[name] for name in ("fastopt", *PEERS[row.against])}
    return judged(asdict(row) | race(problem, entrants, plan), plan.quick)


def peer(row: Record) -> str:
    """The quickest of those that race fastopt; nobody where that or everybody else is wrong."""
    times = spreads(row["samples"])
    others = [name for name in times if name not in ("fastopt", FLOOR)]
    return min(others, key=lambda n: times[n].median) if others and "fastopt" in times else ""


def judged(row: Record, quick: bool) -> Record:
    """The row with its verdict, wrong if fastopt is or every peer, and with the goals it misses."""
    quickest = peer(row)
    missed: list[str] = []
    if not quickest:
        return row | {"verdict": "wrong", "missed": missed}
    claims = [ratios(row["samples"], "fastopt")[quickest]]
    if row["goal"] is not None and claims[0].median < row["goal"]:
        missed.append("ratio")
    if row["floor_goal"] is not None:
        claims.append(ratios(row["samples"], FLOOR)["fastopt"])
        if claims[1].median > row["floor_goal"]:
            missed.append("floor")
    return row | {"verdict": verdict(quick, bool(missed), *claims), "missed": missed}


def table(found: Record) -> pd.DataFrame:
    """A line a row with a goal: the quickest peer's time over fastopt's, fastopt's over floor's."""
    columns = ["work", "optimizer", "against", "ratio [quartiles]", "goal", "time / floor"]
    columns += ["fastopt us", "against us", "GB/s", ""]
    lines = []
    for row in found["rows"]:
        line = {"work": row["work"], "optimizer": named(row)}
        quickest, remarks = peer(row), [row["verdict"]] * (row["verdict"] != "ok")
        if quickest:
            times, missed = spreads(row["samples"]), row["missed"]
            ratio = ratios(row["samples"], "fastopt")[quickest]
            floor = f"{ratios(row['samples'], FLOOR)['fastopt'].median:.2f}"
            moved = row["bytes_per_param"] * row["elements"] * 1e-9
            line |= {
                "against": quickest,
                "ratio [quartiles]": ratio.text(missed="ratio" in missed),
                "goal": f"{row['goal']:g}x" if row["goal"] else "",
                "time / floor": f"**{floor}**" if "floor" in missed else floor,
                "fastopt us": microseconds(times["fastopt"].median),
                "against us": microseconds(times[quickest].median),
                "GB/s": f"{moved / times['fastopt'].median:.1f}",
            }
            remarks += [f"{name} is wrong" for name in row["wrong"]]
        else:
            remarks = [f"**wrong**: {', '.join(row['wrong'])}"]
        lines.append(line | {"": "; ".join(remarks)})
    return pd.DataFrame(lines, columns=columns).fillna("")


QUESTION = Question(
    "cpu",
    "step time of every CPU work against torch's, each beside the floor of a bare stream",
    each_of(ROWS, run_row),
    table,
)
