"""The rules that torch lacks against the libraries that have them: who has which, rows, the table.

Everybody gets the options by which their updates agree, and is checked against the same for-loop in
double: see tests/clients/test_peers.py, which compares them number by number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module, metadata
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks import cpu, rules
from benchmarks.contestants import FLOOR, MAKERS, Maker
from benchmarks.method import Plan, ratios
from benchmarks.peers import ROUNDED
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, each_of

# By module, the distribution that has it.
DISTRIBUTIONS = {
    "adabelief_pytorch": "adabelief-pytorch",
    "lion_pytorch": "lion-pytorch",
    "optimi": "torch-optimi",
    "pytorch_optimizer": "pytorch-optimizer",
    "schedulefree": "schedulefree",
}
# Options that everybody takes, by rule; then who has the rule: module, class, options of its own.
OPTIONS: dict[str, dict[str, Any]] = {
    "Lion": {"lr": 1e-3},
    "AdaBelief": {"lr": 1e-3},
    "AdEMAMix": {"lr": 1e-3, "alpha": 5.0},
    "Adan": {"lr": 1e-3, "eps": 1e-6},
    "SGDScheduleFree": {"lr": 0.1},
    "AdamWScheduleFree": {"lr": 1e-3},
}
QUIET = {"print_change_log": False, "rectify": False}
WHO: dict[str, list[tuple[str, str, dict[str, Any]]]] = {
    "Lion": [(m, "Lion", {}) for m in ("lion_pytorch", "optimi", "pytorch_optimizer")],
    "AdaBelief": [
        ("adabelief_pytorch", "AdaBelief", QUIET),
        ("pytorch_optimizer", "AdaBelief", {}),
    ],
    "AdEMAMix": [("pytorch_optimizer", "AdEMAMix", {})],
    "Adan": [("optimi", "Adan", {}), ("pytorch_optimizer", "Adan", {})],
    "SGDScheduleFree": [
        ("schedulefree", "SGDScheduleFree", {}),
        ("pytorch_optimizer", "ScheduleFreeSGD", {}),
    ],
    "AdamWScheduleFree": [
        ("schedulefree", "AdamWScheduleFree", {}),
        ("pytorch_optimizer", "ScheduleFreeAdamW", {}),
    ],
}
# What they may be off by as a mean, of the update: optimi's Adan was 8e-4 from the for-loop in
# double, pytorch_optimizer's AdamWScheduleFree 3e-4 (each has its eps elsewhere), all others 1e-6.
AGREE = 2e-3
WORKS = ("1x16M", "resnet50", "mlp")


@dataclass(frozen=True)
class Row:
    """One rule on one work, against everybody who has it."""

    algorithm: str
    work: str
    goal: float | None = None
    floor_goal: float | None = None

    @property
    def id(self) -> str:
        """How --only and compare address the row."""
        return f"{self.algorithm}/{self.work}"


ROWS = [Row(rule, work) for rule in WHO for work in WORKS]


def made(module: str, cls: str, own: Mapping[str, Any]) -> Maker:
    """Another library's class, in training mode where it has one."""

    def make(_cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        found = getattr(import_module(module), cls)(params, **options, **own)
        if hasattr(found, "train"):
            found.train()
        optimizer: torch.optim.Optimizer = found
        return optimizer

    return make


def run_row(row: Row, plan: Plan) -> Record:
    """Check everybody who is installed, time those who are right."""
    algorithm = replace(rules.algorithm_of(row.algorithm), options=OPTIONS[row.algorithm])
    problem = rules.Whole(rules.shapes_of(row.work, plan.quick), algorithm, torch.float32)
    makers = {"fastopt": MAKERS["fastopt"]}
    absent = {}
    for module, cls, own in WHO[row.algorithm]:
        if version(module) is None:
            absent[module] = f"{DISTRIBUTIONS[module]} is not installed"
        else:
            makers[module] = made(module, cls, own)
    if len(makers) == 1:  # then the rule's own for-loop alone
        makers["for-loop"] = rules.entrants(row.algorithm)["for-loop"]
    coarse = dict.fromkeys(makers, AGREE) | {"fastopt": ROUNDED}
    found = race(problem, makers, plan, coarse)
    found["absent"] = absent | found["absent"]
    return cpu.judged(asdict(row) | {"dtype": "fp32"} | found, plan.quick)


def table(found: Record) -> pd.DataFrame:
    """A line a rule and library: its time over fastopt's, by work."""
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in found["rows"]:
        over = ratios(row["samples"], "fastopt")
        cells = {name: f"{over[name].median:.2f}x" for name in over.keys() - {"fastopt", FLOOR}}
        for name, cell in sorted((cells | dict.fromkeys(row["wrong"], "**wrong**")).items()):
            line = lines.setdefault((row["algorithm"], name), {})
            line[row["work"]] = cell + " noisy" * (row["verdict"] == "noisy")
    shown = pd.DataFrame(lines).T.fillna("").rename_axis(["time over fastopt's", "library"])
    return shown.reset_index()


def version(module: str) -> str | None:
    """What is installed; None without it."""
    try:
        return metadata.version(DISTRIBUTIONS[module])
    except metadata.PackageNotFoundError:
        return None


QUESTION = Question(
    "others",
    "the rules that torch lacks against the libraries that have them",
    each_of(ROWS, run_row),
    table,
    Plan(placements=2),
    about=lambda: {"libraries": {DISTRIBUTIONS[m]: version(m) for m in DISTRIBUTIONS}},
)
