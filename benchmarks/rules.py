"""Every optimizer against the quickest of its own for-loop and torch's foreach: one line each.

Of rules that torch has, the for-loop is torch's; of others ours, in torch's operations. Problem by
whole tensors, then the rows, then the table: states and bytes too, for it is what the README shows.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import fastopt
from benchmarks.contestants import FLOOR, MAKERS, Maker
from benchmarks.cpu import QUICK_ELEMENTS, judged, peer
from benchmarks.method import Plan, ratios
from benchmarks.peers import ROUNDED
from benchmarks.problem import CHECK_STEPS, Algorithm, Problem
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, each_of
from benchmarks.shapes import WORKS, Shape
from fastopt import declared

# Off by as a mean, of the update: what Muon's products in bfloat16 may be (measured: 0.005).
IN_BFLOAT16 = 0.02

# SGD without momentum is a sum that torch, too, does at the speed of memory. Adafactor's eps goes
# by the dtype, and the reference is in double.
OPTIONS: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9},
    "Adafactor": {"eps": (torch.finfo(torch.float32).eps, 1e-3)},
}
MATRICES = {
    "100x64x64": lambda: [(64, 64)] * 100,
    "24x512x512": lambda: [(512, 512)] * 24,
    "60x256x256": lambda: [(256, 256)] * 60,
}
# How many times as fast, by what an update looks at: its elements alone, its tensor's norms too, or
# products of matrices.
ELEMENTS, TENSORS, PRODUCTS = ("100x64x64", 4.0, 2.0), ("100x64x64", 2.0, 2.0), ("", 1.2, 1.2)
WHOLE = {"LAMB": TENSORS, "LARS": TENSORS, "Adafactor": TENSORS, "Muon": PRODUCTS}


def loop_of(cls: type) -> type:
    """The class whose step it replaces."""
    return cls.__bases__[1]


class Whole(Problem):
    """A problem whose reference is the for-loop over the whole tensors, in double."""

    def _reference(self) -> Tensor:
        params = [p.detach().double().requires_grad_() for p in self.new_params()]
        cls = loop_of(getattr(fastopt, self.algorithm.cls))
        optimizer = cls(params, **self.algorithm.options)
        for step in range(CHECK_STEPS):
            given = self.new_params()
            self.set_grads(given, step)
            for p, like in zip(params, given, strict=True):
                assert like.grad is not None
                p.grad = like.grad.double()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in params])

    def deviation(self, params: Sequence[Tensor]) -> float:
        found = torch.cat([p.detach().double().flatten() for p in params])
        before = torch.cat([p.detach().double().flatten() for p in self.new_params()])
        error = (found - self.expected).square().mean()
        return float((error / (self.expected - before).square().mean()).sqrt())


@dataclass(frozen=True)
class Row:
    """One optimizer on one work: how many times as fast it is to be, how near the floor."""

    algorithm: str
    work: str
    goal: float | None
    floor_goal: float | None = None

    @property
    def id(self) -> str:
        return f"{self.algorithm}/{self.work}"


def rows() -> list[Row]:
    found = []
    for cls in fastopt.optim.CLASSES:
        name = cls.__name__
        small, of_small, of_large = WHOLE.get(name, ELEMENTS)
        if not small:
            found += [Row(name, work, of_small) for work in ("24x512x512", "60x256x256")]
            continue
        found += [Row(name, small, of_small), Row(name, "resnet50", of_large)]
        if name not in WHOLE:
            found.append(Row(name, "1x16M", None, floor_goal=1.1))
    return found


def algorithm_of(name: str) -> Algorithm:
    """With the class's defaults but for OPTIONS; how many tensors it updates is found by a step."""
    p = torch.ones(64, 64, requires_grad=True)
    p.grad = torch.ones_like(p)
    options = OPTIONS.get(name, {})
    optimizer = getattr(fastopt, name)([p], **options)
    optimizer.step()
    states = sum(t.numel() for t in optimizer.state[p].values() if isinstance(t, Tensor))
    return Algorithm(name, options, 1 + round(states / p.numel()))


def entrants(name: str) -> dict[str, Maker]:
    loop = loop_of(getattr(fastopt, name))
    torchs = getattr(torch.optim, name, None) is loop

    def made(**fixed: Any) -> Maker:
        def make(_cls: str, params: list[Tensor], options: Mapping[str, Any]) -> Any:
            return loop(params, **fixed, **options)

        return make

    takes = "foreach" in inspect.signature(loop).parameters
    found = {
        "fastopt": MAKERS["fastopt"],
        "for-loop": made(**({"foreach": False} if takes else {})),
    }
    return found | ({"torch.foreach": made(foreach=True)} if torchs and takes else {})


def shapes_of(work: str, quick: bool) -> Sequence[Shape]:
    """The shapes of a work; of a quick run four, of at most 64 a dimension: Muon's products of
    512x512 in bfloat16 made it four minutes in place of 21 s on a processor without them (EPYC,
    Zen 3).
    """
    shapes = (WORKS | MATRICES)[work]()
    if not quick:
        return shapes
    return [tuple(min(n, 64) for n in s) if len(s) > 1 else (QUICK_ELEMENTS,) for s in shapes[:4]]


def run_row(row: Row, plan: Plan) -> Record:
    """Check and time one row."""
    problem = Whole(shapes_of(row.work, plan.quick), algorithm_of(row.algorithm), torch.float32)
    who = entrants(row.algorithm)
    coarse = IN_BFLOAT16 if row.algorithm == "Muon" else ROUNDED
    found = race(problem, who, plan, dict.fromkeys(who, coarse))
    return judged(asdict(row) | {"dtype": "fp32"} | found, plan.quick)


def source(cls: type) -> str:
    """Whose rule it is, from its docstring."""
    text = " ".join((inspect.getdoc(cls) or "").split())
    found = re.search(r'Source: (.*?), (?:"|lecture)[^;]*?\((?:\w+ )?(\d{4})\)', text)
    return f"{found[1]} ({found[2]})" if found else ""


def states_of(cls: Any) -> str:
    """What it keeps of each parameter."""
    p = torch.ones(64, 64, requires_grad=True)
    p.grad = torch.ones_like(p)
    optimizer = cls([p], **OPTIONS.get(cls.__name__, {}))
    optimizer.step()
    return ", ".join(f"`{k}`" for k, t in optimizer.state[p].items() if t.ndim) or "none"


def backends_of(cls: Any) -> str:
    """Where its kernels run; batched: torch's operations over many tensors, on any device."""
    whole = declared.WHOLE.get(cls._rule)
    if whole is None:
        return "cpu, triton"
    return "cpu, batched" if whole.compiled else "batched"


def table(found: Record) -> pd.DataFrame:
    """A line an optimizer: whose, its states, its bytes a step, then what was measured."""
    lines: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        cls = getattr(fastopt, row["algorithm"])
        line = lines.setdefault(
            row["algorithm"],
            {"optimizer": row["algorithm"], "source": source(cls), "states": states_of(cls)}
            | {"bytes": str(row["bytes_per_param"]), "backends": backends_of(cls)},
        )
        quickest, samples = peer(row), row["samples"]
        if not quickest:
            line[row["work"]] = "**wrong**"
            continue
        noisy = " noisy" if row["verdict"] == "noisy" else ""
        if row["floor_goal"] is not None:
            ratio = ratios(samples, FLOOR)["fastopt"].median
            text = f"{ratio:.2f}"
            line["1x16M / floor"] = (f"**{text}**" if "floor" in row["missed"] else text) + noisy
            continue
        ratio = ratios(samples, "fastopt")[quickest].median
        text = f"{ratio:.1f}x"
        line[row["work"]] = (f"**{text}**" if "ratio" in row["missed"] else text) + noisy
    return pd.DataFrame(lines.values()).fillna("")


QUESTION = Question(
    "rules",
    "step time of every optimizer against its for-loop and torch's foreach, and the floor",
    each_of(rows(), run_row),
    table,
)
