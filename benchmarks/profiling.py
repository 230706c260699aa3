"""Where a step's time goes: its probes, their rounds, the parts they add up to, table, command.

A step is read where its checks end and its writes begin; smaller parts are run alone. In each half
one part is the rest of that half, so that the parts add up; what of the whole step is in neither
half nor in the Python around them is shown as not attributed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pandas as pd
import torch
from torch import Tensor

import fastopt
from benchmarks import contestants
from benchmarks.method import Plan, Samples
from benchmarks.problem import ALGORITHMS, Problem
from benchmarks.record import Record
from benchmarks.session import Question, Rows
from benchmarks.shapes import WORKS, Shape
from fastopt import _core
from fastopt.optim._fused import FusedStep

CASES = [(work, "Adam") for work in ("mlp", "1000x64", "resnet50", "1x64M")]

# Written between two steps of the cold rounds: more than a core's own caches hold.
EVICTING_FLOATS = 2**23


def optimizer_of(problem: Problem) -> tuple[FusedStep, list[Tensor]]:
    """A fastopt optimizer over fresh parameters with gradients, and those parameters."""
    params = problem.new_params()
    made: FusedStep = getattr(fastopt, problem.algorithm.cls)(params, **problem.algorithm.options)
    return made, params


class Pieces:
    """An optimizer that has stepped, over one work; `threads` are torch's unless told."""

    def __init__(self, shapes: Sequence[Shape], algorithm: str, threads: int | None = None) -> None:
        self.problem = Problem(shapes, ALGORITHMS[algorithm], torch.float32)
        self.optimizer, self.params = optimizer_of(self.problem)
        self.optimizer.step()
        self.grads = [param.grad for param in self.params if param.grad is not None]
        states = [self.optimizer.state[param].values() for param in self.params]
        self.states = [tensor for of_param in states for tensor in of_param]
        # In the order of the step: which tensors are still in the caches depends on it.
        self.tensors = [
            tensor
            for param, grad, of_param in zip(self.params, self.grads, states, strict=True)
            for tensor in (param, grad, *of_param)
        ]
        self.threads = threads or torch.get_num_threads()

    def drop_gradients(self) -> Pieces:
        """Take the gradients away: a step then checks its containers and updates nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        return self

    def engine(self, before: Callable[[], None] | None = None) -> None:
        """The step without the Python around it; `before` is called between checks and writes."""
        plan = self.optimizer._record.plan
        assert plan is not None
        assert plan._core is not None
        groups, state = self.optimizer.param_groups, self.optimizer.state
        refused = plan._core.step(groups, state, self.threads, None, before)
        assert refused is None

    def bump_versions(self) -> None:
        """Tell autograd that every parameter was written to."""
        torch.autograd.graph.increment_version(self.params)


def region(threads: int) -> Callable[[], None]:
    """A call that opens a parallel region over next to nothing."""
    tiny = [torch.zeros(64), torch.zeros(64)]
    return lambda: _core.stream(tiny[:1], tiny[1:], threads)


def _probes(shapes: list[Shape], algorithm: str) -> dict[str, Callable[[], Mapping[str, int]]]:
    """What one round runs, in nanoseconds: a probe of the step's two halves, the parts alone."""
    whole = Pieces(shapes, algorithm)
    idle = Pieces([(1,)] * len(shapes), algorithm).drop_gradients()
    tiny = Pieces([(1,)], algorithm).drop_gradients()
    team = _core.useful_threads(whole.problem.elements, whole.threads)

    def halves() -> dict[str, int]:
        checked: list[int] = []
        begin = time.perf_counter_ns()
        whole.engine(lambda: checked.append(time.perf_counter_ns()))
        end = time.perf_counter_ns()
        return {"checks": checked[0] - begin, "writes": end - checked[0]}

    def alone(name: str, call: Callable[[], object]) -> Callable[[], dict[str, int]]:
        def probe() -> dict[str, int]:
            begin = time.perf_counter_ns()
            call()
            return {name: time.perf_counter_ns() - begin}

        return probe

    calls: dict[str, Callable[[], object]] = {
        "step": whole.optimizer.step,
        "idle step": tiny.optimizer.step,
        "idle engine": tiny.engine,
        "no gradients": idle.engine,
        "no gradients, .grad": partial(_core.read_grads, idle.params),
        ".grad": partial(_core.read_grads, whole.params),
        "reads": partial(_core.read_tensors, whole.tensors),
        "versions": whole.bump_versions,
        "region": region(team),
        "no region": region(1),
        "floor": contestants.floor(whole.problem, team),
    }
    return {"halves": halves, **{name: alone(name, call) for name, call in calls.items()}}


def measure(work: str, algorithm: str, shapes: list[Shape], budget: float) -> Record:
    """The samples of one case, with hot caches and with cold ones, and the parts of its step."""
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

    hot = rounds(list(probes), lambda name: probes[name](), budget)
    cold = rounds(["halves", "step"], lambda name: evicting.add_(1), budget / 2)
    about = {"work": work, "algorithm": algorithm, "tensors": len(shapes)}
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
    python = of["idle step"] - of["idle engine"]
    containers = of["no gradients"] - of["no gradients, .grad"]
    inside = {
        CHECKS: {
            "containers, hyperparameters": containers,
            ".grad of every parameter": of[".grad"],
            "tensors read by DLPack": of["reads"],
        },
        WRITES: {
            "version counters": of["versions"],
            "threads called together": of["region"] - of["no region"],
        },
    }
    found = [Part("Python around the engine", python)]
    for half, whole, rest in (
        (CHECKS, of["checks"], "layouts, overlaps, states found"),
        (WRITES, of["writes"], "update of the elements"),
    ):
        left = whole - sum(inside[half].values())
        found.append(Part(half, whole, "in the step"))
        found += [Part(name, seconds, of=half) for name, seconds in inside[half].items()]
        found.append(Part(rest, left, "rest of its half", half))
    left = of["step"] - python - of["checks"] - of["writes"]
    return [*found, Part("not attributed", left, "rest of the step")]


def table(found: Record) -> pd.DataFrame:
    """A line a part, a column a case: microseconds and share of the step."""
    columns: dict[str, dict[str, str]] = {"measured": {}}
    for row in found["rows"]:
        hot, cold = medians(row["samples"]), medians(row["cold_samples"])
        shown = [replace(p, name=f"- {p.name}" if p.of else p.name) for p in parts(hot)]
        shown += [Part("whole step", hot["step"], "whole"), Part("a bare stream", hot["floor"])]
        shown += [Part("cold caches: whole step", cold["step"], "whole")]
        shown += [Part(f"cold caches: {CHECKS}", cold["checks"], "in the step")]
        shown += [Part(f"cold caches: {WRITES}", cold["writes"], "in the step")]
        columns[row["id"]] = {
            part.name: f"{part.seconds * 1e6:,.1f} ({part.seconds / hot['step']:.0%})"
            for part in shown
        }
        columns["measured"] = {part.name: part.how for part in shown}
    return pd.DataFrame(columns).rename_axis("part").reset_index()


def rows(arguments: argparse.Namespace, plan: Plan) -> Rows:
    def case(work: str, algorithm: str) -> Record:
        shapes = WORKS[work]()
        if arguments.quick:
            shapes = [(7,) for _ in shapes[:10]]
        return measure(work, algorithm, shapes, 2 * plan.budget)

    return {"/".join(names): partial(case, *names) for names in CASES}


NOTE = (
    "microseconds and share of the step, medians, with hot caches; measured alone: run by itself; "
    "in the step: read on the way; rest: what remains; cold caches: 32 MB written between steps"
)
QUESTION = Question(
    "profile",
    "where the time of whole steps goes",
    rows,
    table,
    Plan(budget=1.0),
    forces=False,
    about={"notes": [NOTE]},
)
