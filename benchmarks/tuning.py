"""Tiles of the Triton kernel on this GPU: rows, a step with another tile, the run, the table.

Fastopt races itself: with the tile of tiles.py, under the name fastopt, and with every number of
warps and of bytes that a thread takes of the widest stream. Results do not hang on the tile, and
are checked as always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks.contestants import FLOOR, MAKERS, Maker, of
from benchmarks.cpu import work_shapes
from benchmarks.gpu import copy, device_time, on_a_gpu
from benchmarks.method import Clock, Plan, ratios, verdict
from benchmarks.peers import EIGHT_BIT
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, each_of

WARPS, BYTES = (1, 2, 4, 8), (16, 32, 64)
# A tile is another's better where it is quicker by more than clocks of GPUs wander.
GAIN = 1.02


@dataclass(frozen=True)
class Row:
    """A work and an optimizer, the size of its widest element, and whether its states are bytes."""

    work: str
    algorithm: str
    dtype: str
    itemsize: int
    compact: bool = False

    @property
    def id(self) -> str:
        """How --only and compare address the row."""
        return f"{self.work}/{self.algorithm}/{self.dtype}" + "/8-bit states" * self.compact


# A table of tiles has an entry a size of the widest element. Adam has the most streams of the
# usual rules, SGD the fewest.
ROWS = [
    Row("1x64M", "AdamW", "fp32", 4),
    Row("1x64M", "SGD-momentum", "fp32", 4),
    Row("1x64M", "AdamW", "bf16", 2),
    Row("1x64M", "SGD-momentum", "bf16", 2),
    Row("1x64M", "AdamW", "fp64", 8),
    Row("1x64M", "AdamW", "fp32", 4, compact=True),
    Row("1000x64", "AdamW", "fp32", 4),
]


@contextmanager
def tile(row: Row, warps: int, thread_bytes: int) -> Iterator[None]:
    """Launches of the row's size with this tile, and what is planned meanwhile."""
    from fastopt.backends.triton import tiles  # imports Triton

    by_size = tiles.COMPACT_TILES if row.compact else tiles.TILES
    usual = by_size[row.itemsize]
    by_size[row.itemsize] = usual._replace(warps=warps, thread_bytes=thread_bytes)
    try:
        yield
    finally:
        by_size[row.itemsize] = usual


def tiled(make: Maker, row: Row, warps: int, thread_bytes: int) -> Maker:
    """`make`'s optimizer, whose steps alone have this tile."""

    def maker(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer = make(cls, params, options)
        step = optimizer.step

        def with_tile() -> None:
            with tile(row, warps, thread_bytes):
                step()

        optimizer.step = with_tile  # type: ignore[method-assign, assignment]
        return optimizer

    return maker


def run_row(row: Row, plan: Plan, device: str = "cuda", clock: Clock = device_time) -> Record:
    """Check and time one row; short where another tile is quicker than the usual one."""
    shapes = work_shapes(row.work, plan.quick)
    problem = Problem(shapes, ALGORITHMS[row.algorithm], DTYPES[row.dtype], device)
    make = of("fastopt", state_bits=8) if row.compact else MAKERS["fastopt"]
    makers = {"fastopt": make}
    for warps, thread_bytes in product(WARPS, BYTES):
        makers[f"{warps} x {thread_bytes}"] = tiled(make, row, warps, thread_bytes)
    coarse = dict.fromkeys(makers, EIGHT_BIT if row.compact else None)
    found = asdict(row) | race(problem, makers, plan, coarse, clock=clock, floor=copy)
    if "fastopt" in found["wrong"]:
        return found | {"verdict": "wrong"}
    best, over = best_of(found)
    return found | {"best": best, "verdict": verdict(plan.quick, over.median > GAIN, over)}


def best_of(row: Record) -> tuple[str, Any]:
    """The quickest tile, and the usual one's time over its."""
    over = ratios(row["samples"], "fastopt")
    best = min((name for name in over if name != FLOOR), key=lambda name: over[name].median)
    return best, ratios(row["samples"], best)["fastopt"]


def table(found: Record) -> pd.DataFrame:
    """A line a row: the usual tile against the quickest, and every tile's time over the copy's."""
    columns = ["work", "optimizer", "usual / copy", "quickest", "usual / quickest [quartiles]"]
    lines = []
    for row in found["rows"]:
        about = ", ".join([row["algorithm"], row["dtype"], *["8-bit states"] * row["compact"]])
        line = {"work": row["work"], "optimizer": about, "": row["verdict"]}
        if row["verdict"] != "wrong":
            best, over = best_of(row)
            floor = ratios(row["samples"], FLOOR)
            line |= {
                "usual / copy": f"{floor['fastopt'].median:.2f}",
                "quickest": best,
                columns[-1]: over.text(missed=row["verdict"] == "short"),
            }
            for name in row["samples"].keys() - {"fastopt", FLOOR}:
                line[name] = f"{floor[name].median:.2f}"
        lines.append(line)
    tiles = [f"{warps} x {thread_bytes}" for warps, thread_bytes in product(WARPS, BYTES)]
    return pd.DataFrame(lines, columns=[*columns, "", *tiles]).fillna("")


QUESTION = Question(
    "tuning",
    "warps and bytes a thread of the Triton kernel on this GPU (warps x bytes); needs a GPU",
    each_of(ROWS, run_row),
    table,
    Plan(min_rounds=25, min_sample=0.0, placements=1),
    forces=False,
    about=lambda: on_a_gpu("tuning"),
)
