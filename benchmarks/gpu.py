"""The GPU suite: contestants, works, timing, parity on the device, the table, the command.

One command for a machine with a GPU and no network. Every claim is a ratio of medians taken in one
process, contestants in turn; a contestant is checked against the CPU engine before it is timed.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import record
from benchmarks.shapes import gpt2

HELP = "parity on the GPU, then its table; needs a GPU, no network"

Step = Callable[[], object]
Shapes = Sequence[tuple[int, ...]]
BIG: Shapes = [(1 << 28,)]  # 256M elements
SMALL: Shapes = [(8837,)] * 86  # 0.76M elements
TINY: Shapes = [(64,)] * 1000
# Unmeasured rounds first: compilation, plans, the allocator.
WARM_UP = 3


@dataclass(frozen=True)
class Work:
    """One row: what is stepped, how it is timed, against whom, and the goals."""

    name: str
    cls: str
    shapes: Shapes
    streams: int  # tensors read and written, by element: the bytes of a step
    options: dict[str, Any]
    peer: dict[str, Any]
    goal: float  # times as fast as the peer
    bandwidth: float = 0.0  # of the device's own copy
    dtype: torch.dtype = torch.float32
    timing: str = "device"  # device, host or graph
    groups: int = 1


FUSED, FOREACH = {"fused": True}, {"foreach": True}
WORKS = [
    Work("256M fp32", "AdamW", BIG, 7, {}, FUSED, 1.0, 0.92),
    Work("256M fp32", "SGD", BIG, 5, {"lr": 1e-3, "momentum": 0.9}, FUSED, 1.0, 0.92),
    Work("256M fp32", "RMSprop", BIG, 5, {}, FOREACH, 3.0),
    Work("256M bf16", "AdamW", BIG, 7, {}, FUSED, 1.0, 0.90, torch.bfloat16),
    Work("86 tensors, graph", "Adam", SMALL, 7, {"capturable": True}, FUSED, 3.0, timing="graph"),
    Work("1000 x 64, host", "Adam", TINY, 7, {}, FUSED, 5.0, timing="host"),
    Work("GPT-2 small, 148 groups", "AdamW", gpt2(), 7, {}, FUSED, 2.0, groups=148),
]


def build(module: Any, work: Work, device: torch.device, **flags: Any) -> tuple[Any, list[Tensor]]:
    """An optimizer over fresh tensors with gradients; each group has its own learning rate."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=work.dtype)

    params = [normal(shape).requires_grad_() for shape in work.shapes]
    for p in params:
        p.grad = normal(tuple(p.shape))
    count = min(work.groups, len(params))
    groups = [{"params": params[i::count], "lr": 1e-3 * 0.99**i} for i in range(count)]
    return getattr(module, work.cls)(groups, **{**work.options, **flags}), params


def device_time(step: Step) -> float:
    """Seconds between two events around a step."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3


def host_time(step: Step) -> float:
    """Seconds until the host may go on; the device is idle before."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def captured(step: Step) -> Step:
    """`step` as a CUDA graph, warmed up on a side stream as torch asks."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(work: Work, device: torch.device, rounds: int) -> record.Record:
    """Time fastopt, the peer and, for the floor, a copy of as many bytes, in turn."""
    import fastopt

    made = {
        "fastopt": build(fastopt, work, device)[0].step,
        "peer": build(torch.optim, work, device, **work.peer)[0].step,
    }
    steps: dict[str, Step] = dict(made)
    if work.timing == "graph":
        steps = {name: captured(step) for name, step in made.items()}
    elements = sum(math.prod(shape) for shape in work.shapes)
    moved = elements * work.dtype.itemsize * work.streams
    if work.bandwidth:
        source = torch.empty(min(moved // 2, 1 << 30), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        steps["copy"] = lambda: target.copy_(source)
    clock = host_time if work.timing == "host" else device_time
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds):
        for name in list(steps) if index % 2 == 0 else reversed(list(steps)):
            times[name].append(clock(steps[name]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["peer"] / medians["fastopt"]
    row: record.Record = {
        "work": work.name,
        "optimizer": work.cls,
        "peer": "fused" if work.peer == FUSED else "foreach",
        "timing": work.timing,
        "seconds": medians,
        "ratio": ratio,
        "goal": work.goal,
        "bandwidth_goal": work.bandwidth,
    }
    missed = ratio < work.goal
    if work.bandwidth:
        copied = 2 * source.numel() / medians["copy"]
        row["bandwidth"] = moved / medians["fastopt"] / copied
        missed |= row["bandwidth"] < work.bandwidth
    return row | {"verdict": "short" if missed else "ok"}


def differing(cls: str, dtype: torch.dtype, options: dict[str, Any], device: torch.device) -> int:
    """Numbers that differ in a bit from the CPU engine's after three steps."""
    import fastopt

    sizes = [0, 1, 5, 127, 1024, 2049, 100_003]
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(n, generator=generator).to(dtype).requires_grad_() for n in sizes]
    moved = [p.detach().to(device).requires_grad_() for p in pairs]
    engine, ours = (getattr(fastopt, cls)(p, **options) for p in (pairs, moved))
    for _ in range(3):
        for p, q in zip(pairs, moved, strict=True):
            p.grad = torch.randn(p.shape, generator=generator).to(dtype)
            q.grad = p.grad.to(device)
        engine.step()
        ours.step()
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    count = 0
    for p, q in zip(pairs, moved, strict=True):
        tensors = [(p, q), *((s, ours.state[q][k]) for k, s in engine.state[p].items())]
        for a, b in tensors:
            count += int((a.detach().view(bits) != b.detach().cpu().view(bits)).sum())
    return count


PARITY: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("Adam", {"amsgrad": True, "maximize": True}),
    *(
        ("RMSprop", {"momentum": momentum, "centered": centered})
        for momentum in (0, 0.9)
        for centered in (False, True)
    ),
]


def parity(device: torch.device) -> list[record.Record]:
    """Every variant and dtype on the device against the CPU engine."""
    return [
        {
            "optimizer": cls,
            "options": options,
            "dtype": str(dtype),
            "differing": differing(cls, dtype, options, device),
        }
        for cls, options in PARITY
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)
    ]


def show(found: record.Record) -> None:
    """The tables of a record."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    wrong = [row for row in found["parity"] if row["differing"]]
    console.print(f"parity with the CPU engine: {len(found['parity'])} runs, {len(wrong)} differ")
    for row in wrong:
        console.print(row)
    table = Table(title=found["device"]["name"], box=None)
    for name in ("work", "optimizer", "peer", "ratio", "goal", "of copy", "goal", ""):
        table.add_column(name)
    for row in found["rows"]:
        share = f"{row['bandwidth']:.0%}" if "bandwidth" in row else ""
        goal = f"{row['bandwidth_goal']:.0%}" if row["bandwidth_goal"] else ""
        cells = [row["work"], row["optimizer"], row["peer"], f"{row['ratio']:.2f}x"]
        table.add_row(*cells, f"{row['goal']:g}x", share, goal, row["verdict"])
    console.print(table)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `gpu`."""
    parser.add_argument("--rounds", type=int, default=25, help="rounds a row (default: 25)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>.json")


def main(arguments: argparse.Namespace) -> int:
    """Parity, then the table; 1 where there is no GPU or a result differs."""
    from fastopt.backends.triton import missing

    if not torch.cuda.is_available():
        print("benchmarks gpu needs a GPU that torch can use (torch.cuda.is_available() is False)")
        return 1
    if missing() or os.environ.get("TRITON_INTERPRET") == "1":
        print(f"benchmarks gpu needs Triton, not interpreted: {missing() or 'TRITON_INTERPRET=1'}")
        return 1
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    found = record.header("gpu", rounds=arguments.rounds)
    found["device"] = {
        "name": name,
        "memory": torch.cuda.get_device_properties(device).total_memory,
    }
    found["parity"] = parity(device)
    found["rows"] = []
    for work in WORKS:
        found["rows"].append(measure(work, device, arguments.rounds))
        torch.cuda.empty_cache()
    show(found)
    results = Path(__file__).parent / "results"
    record.save(arguments.output or results / f"{name.lower().replace(' ', '-')}.json", found)
    return 1 if any(row["differing"] for row in found["parity"]) else 0
