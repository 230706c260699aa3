"""Everybody on a few works: other libraries and how each is made, the rows, the tables.

A library joins by one entry in LIBRARIES. Importing, or a first step that compiles, happens while a
contestant is built and checked, hence outside the timing.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module, metadata
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks.contestants import FLOOR, MAKERS, Maker, of
from benchmarks.cpu import Row, judged, work_shapes
from benchmarks.method import Plan, ratios, spreads
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, Rows, microseconds, named


@dataclass(frozen=True)
class Library:
    """Optimizers of one kind from one distribution."""

    distribution: str
    make: Maker
    classes: tuple[str, ...]  # of torch's, that it has an equivalent of
    coarse: float | None = None  # what it may be off by as a mean: see contestants.build

    @property
    def version(self) -> str | None:
        """What is installed; None without it."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


def _deepspeed(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    found = import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    optimizer: torch.optim.Optimizer = found(params, adamw_mode=cls == "AdamW", **options)
    return optimizer


ADAMS = ("Adam", "AdamW")
TORCHS = (*ADAMS, "SGD", "RMSprop")

# Measured after CHECK_STEPS: 8-bit states are off by 0.01 of the update, 4-bit ones by 0.14.
EIGHT_BIT, FOUR_BIT = 0.05, 0.25
# A compiled AdamW was seen 1.8 element-wise tolerances off, 2e-5 of its update, and DeepSpeed's
# 1.04: rounding, no fault.
ROUNDED = 1e-4

LIBRARIES: dict[str, Library] = {
    "fastopt": Library("fastopt", MAKERS["fastopt"], TORCHS),
    "torch.default": Library("torch", MAKERS["torch.default"], TORCHS),
    "torch.foreach": Library("torch", MAKERS["torch.foreach"], TORCHS),
    "torch.fused": Library("torch", MAKERS["torch.fused"], (*ADAMS, "SGD")),
    "torch.compiled": Library("torch", MAKERS["torch.compiled"], TORCHS, ROUNDED),
    "deepspeed.CPUAdam": Library("deepspeed", _deepspeed, ADAMS, ROUNDED),
    # Its defaults are not torch's.
    "optimi": Library("torch-optimi", of("optimi", betas=(0.9, 0.999), eps=1e-8), ADAMS),
    "bitsandbytes.32bit": Library(
        "bitsandbytes", of("bitsandbytes.optim", "32bit"), (*ADAMS, "RMSprop")
    ),
    "bitsandbytes.8bit": Library(
        "bitsandbytes", of("bitsandbytes.optim", "8bit"), (*ADAMS, "RMSprop"), EIGHT_BIT
    ),
    "torchao.8bit": Library("torchao", of("torchao.optim", "8bit"), ADAMS, EIGHT_BIT),
    "torchao.fp8": Library("torchao", of("torchao.optim", "Fp8"), ADAMS, EIGHT_BIT),
    "torchao.4bit": Library("torchao", of("torchao.optim", "4bit"), ADAMS, FOUR_BIT),
}

# What these libraries have besides, and why it does not run here.
GPU_ONLY = {
    "apex.FusedAdam": "CUDA only",
    "bitsandbytes.PagedAdamW": "CUDA only: pages between GPU and host",
    "torchao.CPUOffloadOptimizer": "needs a GPU to offload from",
    "optimi.triton": "GPU only",
}


ROWS = [
    *(
        Row(work, "AdamW", "fp32", "everybody")
        for work in ("1x16M", "100x256x256", "1000x64", "mlp")
    ),
    *(Row(work, "RMSprop", "fp32", "everybody") for work in ("100x256x256", "mlp")),
]

# torch.compile unrolls a step over its tensors. 100 took it 30 s here, 1000 took 292.
COMPILED = "torch.compiled"
MOST_COMPILED = 100


def entrants(row: Row, tensors: int) -> tuple[list[str], dict[str, str]]:
    """Who can take part in a row, and why the others do not."""
    cls, taking, absent = ALGORITHMS[row.algorithm].cls, [], dict(GPU_ONLY)
    for name, library in LIBRARIES.items():
        if cls not in library.classes:
            absent[name] = f"has no {cls}"
        elif library.version is None and name != "fastopt":  # that runs from a tree as well
            absent[name] = f"{library.distribution} is not installed"
        elif name == COMPILED and tensors > MOST_COMPILED:
            absent[name] = f"left out: compiles for minutes over {MOST_COMPILED} tensors"
        else:
            taking.append(name)
    return taking, absent


def run_row(row: Row, plan: Plan) -> Record:
    """Check everybody, time those who are right."""
    shapes = work_shapes(row.work, plan.quick)
    problem = Problem(shapes, ALGORITHMS[row.algorithm], DTYPES[row.dtype])
    taking, absent = entrants(row, len(problem.shapes))
    coarse = {name: LIBRARIES[name].coarse for name in taking}
    found = race(problem, {name: LIBRARIES[name].make for name in taking}, plan, coarse)
    found["absent"] = absent | found["absent"]
    found["coarse"] = {name: share for name, share in coarse.items() if share}
    return judged(asdict(row) | found, plan.quick)


def table(found: Record) -> pd.DataFrame:
    """Each row's contestants, quickest first, then those without a time, with the reason."""
    lines = []
    for row in found["rows"]:
        work = f"{row['work']}, {named(row)}"
        times = spreads(row["samples"])
        over = ratios(row["samples"], "fastopt")
        for name in sorted(times.keys() - {FLOOR}, key=lambda name: times[name].median):
            coarse = row["coarse"].get(name)
            note = f"within {coarse * 100:g}% of the update" if coarse else ""
            ratio = over[name].text() if name in over else ""
            us = microseconds(times[name].median)
            lines.append((work, name, ratio, us, f"{row['bytes'][name]:.4g}", note))
        for name in row["wrong"]:
            note = f"wrong: {row['errors'][name]:.3g} tolerances off"
            lines.append((work, name, "**wrong**", "", "", note))
        for why in sorted(set(row["absent"].values()) - set(GPU_ONLY.values())):
            who = ", ".join(name for name, reason in row["absent"].items() if reason == why)
            lines.append((work, who, "", "", "", why))
    columns = ["work", "contestant", "time over fastopt's", "us", "B/param", ""]
    return pd.DataFrame(lines, columns=columns)


def side_by_side(found: Record) -> pd.DataFrame:
    """A line a contestant and a column a row: its time over fastopt's."""
    columns: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        over = ratios(row["samples"], "fastopt")
        cells = {name: f"{ratio.median:.2f}x" for name, ratio in over.items()}
        columns[f"{row['work']}, {row['algorithm']}"] = cells | dict.fromkeys(row["wrong"], "wrong")
    shown = pd.DataFrame(columns).drop(index=["fastopt", FLOOR], errors="ignore").fillna("")
    return shown.rename_axis("time over fastopt's").reset_index()


def rows(arguments: argparse.Namespace, plan: Plan) -> Rows:
    """All works; of a quick run the smallest."""
    return {
        row.id: partial(run_row, row, plan) for row in ROWS if row.work == "mlp" or not plan.quick
    }


VERSIONS = {library.distribution: library.version for library in LIBRARIES.values()}
del VERSIONS["fastopt"]  # the header has it, also where it runs from its tree
NOT_HERE = "not on a CPU: " + "; ".join(f"{name} ({why})" for name, why in GPU_ONLY.items())
QUESTION = Question(
    "peers",
    "every contestant, other libraries and torch.compile among them, on a few works",
    rows,
    table,
    # Every placement builds everybody anew, which compiles again.
    Plan(budget=8.0, placements=2),
    about=lambda: {"libraries": VERSIONS, "notes": [NOT_HERE]},
)
