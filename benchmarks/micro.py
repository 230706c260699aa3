"""Kernels and parts of a step alone: conversions, rules, norm, collection, threads, Python.

Each row races its contestants in turn, as everywhere, beside a `base` that tells how quick it
could be, a copy or a bare stream, or which no change here can move, a call of torch's own. Kernels
run on one thread, on every instruction set that the processor has.
"""

from __future__ import annotations

import argparse
import fnmatch
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from benchmarks import contestants, profiling, record
from benchmarks.cpu import NOISY
from benchmarks.method import QUICK, Plan, interleave, paired, spread
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.record import Record
from benchmarks.shapes import WORKS, Shape
from benchmarks.table import STYLES, display, new_table, ratio

HELP = "kernels and the parts of a step alone; --profile: where the time of whole steps goes"

Step = Callable[[], object]


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
# Odd and past two vectors of any instruction set: a quick run goes through bodies and tails.
QUICK_ELEMENTS = 257
# Times that one call updates the same tensor, in cache: what Python costs is shared by so many.
PASSES = 16


def _on(isa: str, step: Step) -> Step:
    """`step` on one instruction set; choosing it takes 0.1 us."""
    from fastopt import _core

    def chosen() -> None:
        _core.select_isa(isa)
        step()

    return chosen


def conversion(elements: int, dtype: str, direction: str) -> Bench:
    """16-bit numbers to float32 (widen) or back (narrow), against a copy of as many bytes."""
    from fastopt import _core

    torch_dtype: torch.dtype = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    narrow = torch.randn(elements, generator=generator).to(torch_dtype)
    halves, floats = narrow.view(torch.int16).numpy().view(np.uint16), narrow.float().numpy()
    convert: Callable[[], np.ndarray] = (
        partial(_core.widen, dtype, halves)
        if direction == "widen"
        else partial(_core.narrow, dtype, floats)
    )
    expected = floats if direction == "widen" else halves
    source = np.zeros(elements * 6 // 2, np.uint8)
    steps: dict[str, Step] = {"copy": partial(np.copyto, np.zeros_like(source), source)}
    errors = {}
    for isa in _core.supported_isas():
        _core.select_isa(isa)
        # Converting to float32 and back loses nothing: not one number may differ.
        errors[isa] = 2.0 * int((convert() != expected).sum())
        steps[isa] = _on(isa, convert)
    return Bench("element", elements, "copy", steps, errors)


def rule(elements: int, algorithm: str, dtype: str, passes: int) -> Bench:
    """A rule's loop over one tensor, against the bare stream over the same bytes."""
    from benchmarks.pieces import optimizer_of
    from fastopt import _core

    best = _core.isa()
    problem = Problem([(elements,)], ALGORITHMS[algorithm], DTYPES[dtype])
    optimizer, (param,) = optimizer_of(problem)
    optimizer.step()
    assert param.grad is not None
    name, group, state = optimizer._rule, optimizer.param_groups[0], optimizer.state[param]
    lists = ([param] * passes, [param.grad] * passes)
    states = [[state[key]] * passes for key, _ in _core.states(name, group)]
    counts = [state["step"]] * passes if _core.counts_steps(name) else []
    update = partial(_core.update, name, *lists, states, counts, b"", group, False, None, threads=1)
    stream = contestants.floor(problem, threads=1)
    steps: dict[str, Step] = {"stream": _on(best, lambda: [stream() for _ in range(passes)])}
    errors = {}
    for isa in _core.supported_isas():
        _core.select_isa(isa)
        errors[isa] = contestants.build(contestants.MAKERS["fastopt"], problem).error
        steps[isa] = _on(isa, update)
    return Bench("element", elements * passes, "stream", steps, errors)


def norm(elements: int, passes: int) -> Bench:
    """The sums of squares that the norm of a float32 gradient is made of, against reading it."""
    from fastopt import _core
    from fastopt.rules import passes as reference

    best = _core.isa()
    numbers = torch.randn(elements, generator=torch.Generator().manual_seed(0))
    tensor = numbers.numpy()
    expected = reference.halve(reference.blocks(tensor.astype(np.float64) ** 2))
    padded = torch.zeros(-(-elements // 64) * 64)  # the stream leaves a tail out

    def read() -> None:
        for _ in range(passes):
            _core.stream([padded], [], 1)

    steps: dict[str, Step] = {"read": _on(best, read)}
    errors = {}
    for isa in _core.supported_isas():
        _core.select_isa(isa)
        errors[isa] = 2.0 * int((_core.square_sums(tensor) != expected).sum())
        steps[isa] = _on(isa, lambda: [_core.square_sums(tensor) for _ in range(passes)])
    return Bench("element", elements * passes, "read", steps, errors)


def collection(shapes: list[Shape]) -> Bench:
    """The engine's step and what it does before it writes, against a pass of torch's own."""
    from benchmarks.pieces import Pieces

    whole = Pieces(shapes, "Adam", threads=1)
    idle = Pieces([(1,)] * len(shapes), "Adam").drop_gradients()
    steps: dict[str, Step] = {
        "torch's version counters": whole.bump_versions,
        "whole step": whole.engine,
        "plan checked, no gradients": idle.engine,
        ".grad of each": whole.read_grads,
        "parameters by DLPack": whole.read_params,
        "gradients by DLPack": whole.read_gradients,
        "states by DLPack": whole.read_states,
    }
    return Bench("parameter", len(shapes), "torch's version counters", steps)


def region(threads: int) -> Bench:
    """A parallel region over next to nothing, on a team that is awake."""
    from benchmarks.pieces import region as opened

    return Bench(
        "region", 1, "1 thread", {f"{n} thread{'s'[: n > 1]}": opened(n) for n in (1, threads)}
    )


def python() -> Bench:
    """What a step costs that has nothing to update; torch's own class is the base."""
    from benchmarks.pieces import Pieces

    idle = Pieces([(1,)], "Adam").drop_gradients()
    torchs = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    steps: dict[str, Step] = {
        "torch.optim.Adam": torchs.step,
        "engine alone": idle.engine,
        "fastopt.Adam": idle.step,
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


def run_row(name: str, make: Callable[[], Bench], plan: Plan, quick: bool = False) -> Record:
    """Check and time one row; `of_base` is each contestant's time over the base's."""
    from fastopt import _core

    isa = _core.isa()
    try:
        bench = make()
        about = {"id": name, "unit": bench.unit, "units": bench.units, "base": bench.base}
        about["errors"] = dict(bench.errors)
        wrong = [who for who, error in bench.errors.items() if not error <= 1]
        if wrong:
            return about | {"samples": {}, "verdict": "wrong", "wrong": wrong}
        samples = interleave(bench.steps, plan)
    finally:
        _core.select_isa(isa)
    of_base = {
        who: spread(paired(times, samples[bench.base]))
        for who, times in samples.items()
        if who != bench.base
    }
    noisy = any(over.relative > NOISY for over in of_base.values())
    return about | {
        "samples": samples,
        "verdict": "right" if quick else "noisy" if noisy else "ok",
        "times": {who: asdict(spread(times)) for who, times in samples.items()},
        "of_base": {who: asdict(over) for who, over in of_base.items()},
    }


COLUMNS = (
    ("row", "left"),
    ("contestant", "left"),
    ("ns", "right"),
    ("per", "left"),
    ("time / base", "right"),
    ("", "left"),
)


def table(found: Record) -> Table:
    """A line a contestant; the base of each row first."""
    shown = new_table(found, COLUMNS, "base: what the others of its row are compared with")
    for row in found["rows"]:
        verdict = Text(row["verdict"], STYLES[row["verdict"]])
        if row["verdict"] == "wrong":
            shown.add_row(row["id"], ", ".join(row["wrong"]), "", "", "", verdict)
        for who, time in row.get("times", {}).items():
            shown.add_row(
                row["id"] if who == row["base"] else "",
                who,
                f"{time['median'] * 1e9 / row['units']:,.3f}",
                row["unit"],
                ratio(row["of_base"][who]) if who in row["of_base"] else "base",
                verdict if who in row["of_base"] else "",
            )
    return shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks micro`."""
    parser.add_argument("--list", action="store_true", help="print the rows' ids and stop")
    parser.add_argument(
        "--only", metavar="PATTERN", default="*", help="rows whose id has this glob in it"
    )
    parser.add_argument("--quick", action="store_true", help="tiny tensors, times mean nothing")
    parser.add_argument(
        "--budget", type=float, default=1.0, help="seconds per row (default %(default)s)"
    )
    parser.add_argument(
        "--profile", action="store_true", help="take whole steps apart instead (profile.json)"
    )
    parser.add_argument("--out", type=Path, help="default: build/benchmarks/micro.json")


def main(arguments: argparse.Namespace) -> int:
    """Run the chosen rows, or the profile; 1 if a result was wrong."""
    if arguments.profile:
        return profiling.main(arguments)
    made = rows(torch.get_num_threads(), arguments.quick)
    made = {
        name: make for name, make in made.items() if fnmatch.fnmatch(name, f"*{arguments.only}*")
    }
    if arguments.list:
        print("\n".join(made))
        return 0
    if not made:
        raise SystemExit(f"no row matches {arguments.only!r}; see --list")
    plan = QUICK if arguments.quick else Plan(budget=arguments.budget)
    result = record.header("micro", quick=arguments.quick, **asdict(plan))
    result["rows"] = []
    out = arguments.out or Path("build/benchmarks/micro.json")
    with display(result, len(made), table) as shown:
        for name, make in made.items():
            shown.start(name)
            result["rows"].append(run_row(name, make, plan, arguments.quick))
            record.save(out, result)
            shown.done()
    print(f"{out}: every sample")
    return int(any(row["verdict"] == "wrong" for row in result["rows"]))
