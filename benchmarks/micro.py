"""Kernels alone: conversions, rules, the norm.

Each row races its contestants in turn, as everywhere, beside a `base` that tells how quick it
could be, a copy or a bare stream. Kernels run on one thread, on every instruction set that the
processor has. The other parts of a step: profiling.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import torch

from benchmarks.contestants import MAKERS, build, floor, on
from benchmarks.cpu import QUICK_ELEMENTS
from benchmarks.method import Plan, Step, interleave, ratios, spreads, verdict
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.profiling import optimizer_of
from benchmarks.record import Record
from benchmarks.session import Question, Rows
from fastopt import _core
from fastopt.rules import passes as reference


@dataclass(frozen=True)
class Kernel:
    """A call that handles so many elements, what it is compared with, its error in tolerances."""

    elements: int
    base: str
    least: Step  # the base's
    call: Step
    error: Callable[[], float]  # at most 1 is right


# All streams of a rule together fit the second cache, with the floor's own beside them; and so
# many elements that the call itself (0.6 us) is a few percent of the quickest.
IN_CACHE = 2**15
IN_MEMORY = 2**24
# Times that one call updates the same tensor, in cache: what Python costs is shared by so many.
PASSES = 16


def repeated(step: Step, passes: int) -> Step:
    """`step`, so often in one call."""
    return lambda: [step() for _ in range(passes)]


def conversion(elements: int, dtype: str, direction: str) -> Kernel:
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
    return Kernel(elements, "copy", copy, convert, lambda: 2.0 * int((convert() != expected).sum()))


def rule(elements: int, algorithm: str, dtype: str, passes: int) -> Kernel:
    """A rule's loop over one tensor, against the bare stream over the same bytes."""
    problem = Problem([(elements,)], ALGORITHMS[algorithm], DTYPES[dtype])
    optimizer, (param,) = optimizer_of(problem)
    optimizer.step()
    assert param.grad is not None
    name, group, state = optimizer._rule, optimizer.param_groups[0], optimizer.state[param]
    lists = ([param] * passes, [param.grad] * passes)
    states = [[state[key]] * passes for key, _ in _core.states(name, group)]
    carried = [[state[key]] * passes for key, _ in _core.carried(name)]
    update = partial(
        _core.update, name, *lists, states, carried, {}, b"", group, False, None, threads=1
    )
    return Kernel(
        elements * passes,
        "stream",
        repeated(floor(problem, threads=1), passes),
        update,
        lambda: build(MAKERS["fastopt"], problem).error,
    )


def norm(elements: int, passes: int) -> Kernel:
    """The sums of squares that the norm of a float32 gradient is made of, against reading it."""
    tensor = torch.randn(elements, generator=torch.Generator().manual_seed(0)).numpy()
    expected = reference.halve(reference.blocks(tensor.astype(np.float64) ** 2))
    padded = torch.zeros(-(-elements // 64) * 64)  # the stream leaves a tail out
    return Kernel(
        elements * passes,
        "read",
        repeated(partial(_core.stream, [padded], [], 1), passes),
        repeated(partial(_core.square_sums, tensor), passes),
        lambda: 2.0 * int((_core.square_sums(tensor) != expected).sum()),
    )


def kernels(quick: bool) -> Mapping[str, Callable[[], Kernel]]:
    """What makes each kernel, by its row's id."""
    cached, large = (QUICK_ELEMENTS,) * 2 if quick else (IN_CACHE, IN_MEMORY)
    made: dict[str, Callable[[], Kernel]] = {}
    for dtype in ("bfloat16", "float16"):
        for direction in ("widen", "narrow"):
            made[f"convert/{dtype}/{direction}"] = partial(conversion, cached, dtype, direction)
    for place, elements, passes in (("in cache", cached, PASSES), ("in memory", large, 1)):
        for algorithm in ("SGD-momentum", "RMSprop", "Adam"):
            for dtype in DTYPES:
                make = partial(rule, elements, algorithm, dtype, passes)
                made[f"rule/{algorithm}/{dtype}/{place}"] = make
        made[f"norm/{place}"] = partial(norm, elements, passes)
    return made


def run_row(make: Callable[[], Kernel], plan: Plan) -> Record:
    """Check a kernel on every instruction set, and time it beside its base."""
    best, errors = _core.isa(), {}
    try:
        kernel = make()
        steps = {kernel.base: on(best, kernel.least)}
        for isa in _core.supported_isas():
            _core.select_isa(isa)
            errors[isa] = kernel.error()
            steps[isa] = on(isa, kernel.call)
        wrong = [isa for isa, error in errors.items() if not error <= 1]
        samples = {} if wrong else interleave(steps, plan)
    finally:
        _core.select_isa(best)
    claims = ratios(samples, kernel.base).values()
    return {
        "unit": "element",
        "units": kernel.elements,
        "base": kernel.base,
        "errors": errors,
        "wrong": wrong,
        "samples": samples,
        "verdict": "wrong" if wrong else verdict(plan.quick, False, *claims),
    }


def table(found: Record) -> pd.DataFrame:
    """A line a contestant, the base of each row first; one that is wrong is all that is said."""
    lines = []
    for row in found["rows"]:
        over = ratios(row["samples"], row["base"])
        lines += [
            (row["id"], f"{name} is **wrong**", "", "", "wrong") for name in row.get("wrong", [])
        ]
        for name, time in spreads(row["samples"]).items():
            ns = f"{time.median * 1e9 / row['units']:,.3f} / {row['unit']}"
            ratio = "base" if name == row["base"] else over[name].text()
            lines.append((row["id"], name, ns, ratio, row["verdict"]))
    return pd.DataFrame(lines, columns=["row", "contestant", "ns", "time / base", ""])


def rows(arguments: argparse.Namespace, plan: Plan) -> Rows:
    return {name: partial(run_row, make, plan) for name, make in kernels(plan.quick).items()}


QUESTION = Question(
    "micro",
    "kernels alone, on every instruction set",
    rows,
    table,
    Plan(budget=1.0),
    forces=False,
    about=lambda: {"notes": ["base: what the others of its row are compared with"]},
)
