"""Where a step's time goes: its probes, their rounds, the parts they add up to, table, command.

A step is read where its checks end and its writes begin; smaller parts are run alone. In each half
one part is the rest of that half, so that the parts add up; what of the whole step is in neither
half nor in the Python around them is shown as not attributed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch
from torch import Tensor

import fastopt
from benchmarks import contestants
from benchmarks.cpu import work_shapes
from benchmarks.method import Plan, Samples, Step
from benchmarks.problem import ALGORITHMS, Problem
from benchmarks.record import Record
from benchmarks.session import Question, Rows
from benchmarks.shapes import Shape
from fastopt import _core
from fastopt.optim._fused import FusedStep

CASES = [(work, "Adam") for work in ("mlp", "1000x64", "resnet50", "1x64M")]

# Written between two steps of the cold rounds: more than a core's own caches hold.
EVICTING_FLOATS = 2**23
# What the others are compared with from one record to the next: no change here can move it.
BASE = "versions"


def optimizer_of(problem: Problem) -> tuple[FusedStep, list[Tensor]]:
    """A fastopt optimizer over fresh parameters with gradients, and those parameters."""
    params = problem.new_params()
    made: FusedStep = getattr(fastopt, problem.algorithm.cls)(params, **problem.algorithm.options)
    return made, params


class Pieces:
    """An optimizer that has stepped, over one work; idle: its gradients are gone since."""

    def __init__(self, shapes: Sequence[Shape], algorithm: str, idle: bool = False) -> None:
        self.problem = Problem(shapes, ALGORITHMS[algorithm], torch.float32)
        self.optimizer, self.params = optimizer_of(self.problem)
        self.optimizer.step()
        if idle:
            self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> list[Tensor]:
        """In the order of the step: which of them are still in the caches depends on it."""
        state = self.optimizer.state
        each = ((param, param.grad, *state[param].values()) for param in self.params)
        return [tensor for of_param in each for tensor in of_param if tensor is not None]

    def engine(self, before: Callable[[], None] | None = None) -> None:
        """The step without the Python around it; `before` is called between checks and writes."""
        plan = self.optimizer._record.plan
        assert plan is not None
        assert plan._core is not None
        groups, state = self.optimizer.param_groups, self.optimizer.state
        refused = plan._core.step(groups, state, torch.get_num_threads(), None, before)
        assert refused is None


def region(threads: int) -> Step:
    """A call that opens a parallel region over next to nothing."""
    tiny = [torch.zeros(64), torch.zeros(64)]
    return lambda: _core.stream(tiny[:1], tiny[1:], threads)


def _probes(shapes: Sequence[Shape], algorithm: str) -> dict[str, Callable[[], Mapping[str, int]]]:
    """What one round runs, in nanoseconds: a probe of the step's two halves, the parts alone."""
    whole = Pieces(shapes, algorithm)
    idle = Pieces([(1,)] * len(shapes), algorithm, idle=True)
    tiny = Pieces([(1,)], algorithm, idle=True)
    team = _core.useful_threads(whole.problem.elements, torch.get_num_threads())

    def halves() -> dict[str, int]:
        checked: list[int] = []
        begin = time.perf_counter_ns()
        whole.engine(lambda: checked.append(time.perf_counter_ns()))
        end = time.perf_counter_ns()
        return {"checks": checked[0] - begin, "writes": end - checked[0]}

    def alone(name: str, call: Step) -> dict[str, int]:
        begin = time.perf_counter_ns()
        call()
        return {name: time.perf_counter_ns() - begin}

    calls: dict[str, Step] = {
        "step": whole.optimizer.step,
        "idle step": tiny.optimizer.step,
        "idle engine": tiny.engine,
        "no gradients": idle.engine,
        "no gradients, .grad": partial(_core.read_grads, idle.params),
        ".grad": partial(_core.read_grads, whole.params),
        "reads": partial(_core.read_tensors, whole.tensors()),
        BASE: partial(torch.autograd.graph.increment_version, whole.params),
        "region": region(team),
        "no region": region(1),
        "floor": contestants.floor(whole.problem, team),
    }
    return {"halves": halves, **{name: partial(alone, name, call) for name, call in calls.items()}}


def measure(work: str, algorithm: str, plan: Plan) -> Record:
    """The samples of one case, with hot caches and with cold ones."""
    shapes = work_shapes(work, plan.quick)
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

    hot = rounds(list(probes), lambda name: probes[name](), 2 * plan.budget)
    cold = rounds(["halves", "step"], lambda name: evicting.add_(1), plan.budget)
    about = {"work": work, "algorithm": algorithm, "tensors": len(shapes), "base": BASE}
    return about | {"samples": hot, "cold_samples": cold, "verdict": "right"}


def medians(samples: Samples) -> dict[str, float]:
    """The median of each probe."""
    return {str(name): float(time) for name, time in pd.DataFrame(samples).median().items()}


@dataclass(frozen=True)
class Part:
    """A part of a step; one that belongs to the half above it has `of`."""

    name: str
    seconds: float
    how: str = "alone"
    of: str = ""


CHECKS, WRITES = "before the first write", "writes"


def parts(of: Mapping[str, float]) -> list[Part]:
    """The parts of a step from the probes' medians: those without `of` add up to the step."""
    checks, writes = of["checks"], of["writes"]
    python = of["idle step"] - of["idle engine"]
    containers = of["no gradients"] - of["no gradients, .grad"]
    called = of["region"] - of["no region"]
    found = checks - containers - of[".grad"] - of["reads"]
    updated = writes - of["versions"] - called
    return [
        Part("Python around the engine", python),
        Part(CHECKS, checks, "in the step"),
        Part("containers, hyperparameters", containers, of=CHECKS),
        Part(".grad of every parameter", of[".grad"], of=CHECKS),
        Part("tensors read by DLPack", of["reads"], of=CHECKS),
        Part("layouts, overlaps, states found", found, "rest of its half", CHECKS),
        Part(WRITES, writes, "in the step"),
        Part("version counters", of["versions"], of=WRITES),
        Part("threads called together", called, of=WRITES),
        Part("update of the elements", updated, "rest of its half", WRITES),
        Part("not attributed", of["step"] - python - checks - writes, "rest of the step"),
    ]


def table(found: Record) -> pd.DataFrame:
    """A line a part, a column a case: microseconds and share of the step."""
    columns: dict[str, dict[str, str]] = {"measured": {}}
    for row in found["rows"]:
        hot, cold = medians(row["samples"]), medians(row["cold_samples"])
        shown = [
            *parts(hot),
            Part("whole step", hot["step"], "whole"),
            Part("a bare stream", hot["floor"]),
            Part("cold caches: whole step", cold["step"], "whole"),
            Part(f"cold caches: {CHECKS}", cold["checks"], "in the step"),
            Part(f"cold caches: {WRITES}", cold["writes"], "in the step"),
        ]
        names = [f"- {part.name}" if part.of else part.name for part in shown]
        times = [f"{p.seconds * 1e6:,.1f} ({p.seconds / hot['step']:.0%})" for p in shown]
        columns[row["id"]] = dict(zip(names, times, strict=True))
        columns["measured"] = dict(zip(names, [part.how for part in shown], strict=True))
    return pd.DataFrame(columns).rename_axis("part").reset_index()


def rows(arguments: argparse.Namespace, plan: Plan) -> Rows:
    return {"/".join(case): partial(measure, *case, plan) for case in CASES}


NOTE = (
    "microseconds and share of the step, medians, with hot caches; measured alone: run by itself; "
    "in the step: read on the way; rest: what remains; cold caches: 32 MB written between steps"
)
QUESTION = Question(
    "profile",
    "where the time of whole steps goes, part by part",
    rows,
    table,
    Plan(budget=1.0),
    forces=False,
    about=lambda: {"notes": [NOTE]},
)
