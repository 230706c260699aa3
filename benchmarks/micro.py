"""Kernels and parts of a step alone: conversions, rules, norm, collection, threads, Python.

Each row races its contestants in turn, as everywhere, beside a `base` that tells how quick it
could be, a copy or a bare stream, or which no change here can move, a call of torch's own. Kernels
run on one thread, on every instruction set that the processor has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
import torch

from benchmarks import profiling
from benchmarks.contestants import MAKERS, Step, build, floor
from benchmarks.cpu import QUICK_ELEMENTS
from benchmarks.method import Plan, interleave, ratios, spreads, verdict
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.profiling import Pieces, optimizer_of
from benchmarks.record import Record
from benchmarks.session import Question, Rows
from benchmarks.shapes import WORKS, Shape
from fastopt import _core
from fastopt.rules import passes as reference


@dataclass(frozen=True)
class Bench:
    """Contestants of one row; a call of each handles `units` of `unit`."""

    unit: str
    units: int
    base: str  # the contestant that the others are compared with
    steps: Mapping[str, Step]
    errors: Mapping[str, float] = field(default_factory=dict)  # in tolerances: at most 1 is right


# All streams of a rule together fit the second cache, with the floor's own beside them; and so
# many elements that the call itself (0.6 us) is a few percent of the quickest.
IN_CACHE = 2**15
IN_MEMORY = 2**24
# Times that one call updates the same tensor, in cache: what Python costs is shared by so many.
PASSES = 16


def _on(isa: str, step: Step) -> Step:
    """`step` on one instruction set; choosing it takes 0.1 us."""

    def chosen() -> None:
        _core.select_isa(isa)
        step()

    return chosen


def by_isa(elements: int, base: tuple[str, Step], step: Step, error: Callable[[], float]) -> Bench:
    """`step` on every instruction set, each of whose results is checked, beside its base."""
    steps, errors = dict([base]), {}
    for isa in _core.supported_isas():
        _core.select_isa(isa)
        errors[isa] = error()
        steps[isa] = _on(isa, step)
    return Bench("element", elements, base[0], steps, errors)


def conversion(elements: int, dtype: str, direction: str) -> Bench:
    """16-bit numbers to float32 (widen) or back (narrow), against a copy of as many bytes."""
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(elements, generator=generator).to(getattr(torch, dtype))
    halves, floats = narrow.view(torch.int16).numpy().view(np.uint16), narrow.float().numpy()
    expected: np.ndarray = halves
    convert: Callable[[], np.ndarray] = partial(_core.narrow, dtype, floats)
    if direction == "widen":
        expected, convert = floats, partial(_core.widen, dtype, halves)
    source = np.zeros(elements * 6 // 2, np.uint8)
    copy = partial(np.copyto, np.zeros_like(source), source)
    # Converting to float32 and back loses nothing: not one number may differ.
    return by_isa(
        elements, ("copy", copy), convert, lambda: 2.0 * int((convert() != expected).sum())
    )


def rule(elements: int, algorithm: str, dtype: str, passes: int) -> Bench:
    """A rule's loop over one tensor, against the bare stream over the same bytes."""
    problem = Problem([(elements,)], ALGORITHMS[algorithm], DTYPES[dtype])
    optimizer, (param,) = optimizer_of(problem)
    optimizer.step()
    assert param.grad is not None
    name, group, state = optimizer._rule, optimizer.param_groups[0], optimizer.state[param]
    lists = ([param] * passes, [param.grad] * passes)
    states = [[state[key]] * passes for key, _ in _core.states(name, group)]
    counts = [state["step"]] * passes if _core.counts_steps(name) else []
    update = partial(_core.update, name, *lists, states, counts, b"", group, False, None, threads=1)
    stream = floor(problem, threads=1)
    base = _on(_core.isa(), lambda: [stream() for _ in range(passes)])
    return by_isa(
        elements * passes, ("stream", base), update, lambda: build(MAKERS["fastopt"], problem).error
    )


def norm(elements: int, passes: int) -> Bench:
    """The sums of squares that the norm of a float32 gradient is made of, against reading it."""
    tensor = torch.randn(elements, generator=torch.Generator().manual_seed(0)).numpy()
    expected = reference.halve(reference.blocks(tensor.astype(np.float64) ** 2))
    padded = torch.zeros(-(-elements // 64) * 64)  # the stream leaves a tail out

    def read() -> None:
        for _ in range(passes):
            _core.stream([padded], [], 1)

    return by_isa(
        elements * passes,
        ("read", _on(_core.isa(), read)),
        lambda: [_core.square_sums(tensor) for _ in range(passes)],
        lambda: 2.0 * int((_core.square_sums(tensor) != expected).sum()),
    )


def collection(shapes: list[Shape]) -> Bench:
    """The engine's step and what it does before it writes, against a pass of torch's own."""
    whole = Pieces(shapes, "Adam", threads=1)
    idle = Pieces([(1,)] * len(shapes), "Adam").drop_gradients()
    base = "torch's version counters"
    steps: dict[str, Step] = {
        base: whole.bump_versions,
        "whole step": whole.engine,
        "plan checked, no gradients": idle.engine,
        ".grad of each": partial(_core.read_grads, whole.params),
        "parameters by DLPack": partial(_core.read_tensors, whole.params),
        "gradients by DLPack": partial(_core.read_tensors, whole.grads),
        "states by DLPack": partial(_core.read_tensors, whole.states),
    }
    return Bench("parameter", len(shapes), base, steps)


def region(threads: int) -> Bench:
    """A parallel region over next to nothing, on a team that is awake."""
    steps = {f"{n} thread{'s'[: n > 1]}": profiling.region(n) for n in (1, threads)}
    return Bench("region", 1, "1 thread", steps)


def python() -> Bench:
    """What a step costs that has nothing to update; torch's own class is the base."""
    idle = Pieces([(1,)], "Adam").drop_gradients()
    torchs = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    steps: dict[str, Step] = {
        "torch.optim.Adam": torchs.step,
        "engine alone": idle.engine,
        "fastopt.Adam": idle.optimizer.step,
    }
    return Bench("step", 1, "torch.optim.Adam", steps)


def rows(threads: int, quick: bool) -> dict[str, Callable[[], Bench]]:
    """What makes each row, by its id."""
    cached, large = (QUICK_ELEMENTS,) * 2 if quick else (IN_CACHE, IN_MEMORY)
    made: dict[str, Callable[[], Bench]] = {}
    for dtype in ("bfloat16", "float16"):
        for direction in ("widen", "narrow"):
            made[f"convert/{dtype}/{direction}"] = partial(conversion, cached, dtype, direction)
    for place, elements, passes in (("in cache", cached, PASSES), ("in memory", large, 1)):
        for algorithm in ("SGD-momentum", "RMSprop", "Adam"):
            for dtype in DTYPES:
                made[f"rule/{algorithm}/{dtype}/{place}"] = partial(
                    rule, elements, algorithm, dtype, passes
                )
        made[f"norm/{place}"] = partial(norm, elements, passes)
    made["collect/1000x64"] = partial(collection, WORKS["1000x64"]()[: 10 if quick else None])
    if threads > 1:
        made["threads"] = partial(region, threads)
    made["nothing to update"] = python
    return made


def run_row(make: Callable[[], Bench], plan: Plan, quick: bool = False) -> Record:
    """Check and time one row."""
    isa = _core.isa()
    try:
        bench = make()
        wrong = [who for who, error in bench.errors.items() if not error <= 1]
        samples = {} if wrong else interleave(bench.steps, plan)
    finally:
        _core.select_isa(isa)
    claims = ratios(samples, bench.base).values() if samples else ()
    return {
        "unit": bench.unit,
        "units": bench.units,
        "base": bench.base,
        "errors": dict(bench.errors),
        "wrong": wrong,
        "samples": samples,
        "verdict": "wrong" if wrong else verdict(quick, False, *claims),
    }


def table(found: Record) -> pd.DataFrame:
    """A line a contestant, the base of each row first; one that is wrong is all that is said."""
    lines = []
    for row in found["rows"]:
        over = ratios(row["samples"], row["base"]) if row["samples"] else {}
        lines += [
            (row["id"], f"{name} is **wrong**", "", "", "wrong") for name in row.get("wrong", [])
        ]
        for name, time in spreads(row["samples"]).items():
            ns = f"{time.median * 1e9 / row['units']:,.3f} / {row['unit']}"
            ratio = "base" if name == row["base"] else over[name].text()
            lines.append((row["id"], name, ns, ratio, row["verdict"]))
    return pd.DataFrame(lines, columns=["row", "contestant", "ns", "time / base", ""])


def measured(arguments: argparse.Namespace, plan: Plan) -> Rows:
    made = rows(torch.get_num_threads(), arguments.quick)
    return {name: partial(run_row, make, plan, arguments.quick) for name, make in made.items()}


QUESTION = Question(
    "micro",
    "kernels and the parts of a step alone",
    measured,
    table,
    Plan(budget=1.0),
    forces=False,
    about={"notes": ["base: what the others of its row are compared with"]},
)
