"""The GPU suite: works, timing, the table, the command.

One command for a machine with a GPU and no network. Every claim is a ratio of medians taken in one
process, contestants in turn; what the device computes is checked against the CPU engine before
anything is timed (tests/gpu_parity.py).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

import fastopt
from benchmarks import record, session
from benchmarks.method import ratios, spreads
from benchmarks.shapes import gpt2
from fastopt.backends.triton import missing

HELP = "parity on the GPU, then its table; needs a GPU, no network"
PARITY = Path(__file__).parents[1] / "tests" / "gpu_parity.py"

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
    goal: float | None  # times as fast as the peer
    bandwidth: float | None = None  # of the device's own copy
    dtype: torch.dtype = torch.float32
    timing: str = "device"  # device, host or graph
    groups: int = 1
    passes: dict[str, Any] = field(default_factory=dict)  # of fastopt; the peer: `composed`


FUSED, FOREACH = {"fused": True}, {"foreach": True}
MOMENTUM = {"lr": 1e-3, "momentum": 0.9}
BF16 = torch.bfloat16
CLIP_AND_AVERAGE = {"max_grad_norm": 1.0, "ema_decay": 0.999}
# 200 param groups were asked of GPT-2 small, which has 148 tensors: each is a group of its own.
WORKS = [
    Work("256M fp32", "AdamW", BIG, 7, {}, FUSED, None, 0.92),
    Work("256M fp32", "SGD", BIG, 5, MOMENTUM, FUSED, None, 0.92),
    Work("256M fp32", "RMSprop", BIG, 5, {}, FOREACH, 3.0),
    Work("256M bf16", "AdamW", BIG, 7, {}, FUSED, 1.0, 0.90, BF16),
    Work("256M bf16", "SGD", BIG, 5, MOMENTUM, FUSED, 1.0, 0.90, BF16),
    Work("86 tensors, graph", "Adam", SMALL, 7, {"capturable": True}, FUSED, 3.0, timing="graph"),
    Work("1000 x 64, host", "Adam", TINY, 7, {}, FUSED, 5.0, timing="host"),
    Work("GPT-2 small, 148 groups", "AdamW", gpt2(), 7, {}, FUSED, 2.0, groups=148),
    Work(
        "GPT-2 small, clip and average",
        "AdamW",
        gpt2(),
        10,
        {},
        FUSED,
        None,
        passes=CLIP_AND_AVERAGE,
    ),
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


def composed(step: Step, params: list[Tensor], passes: dict[str, Any]) -> Step:
    """Torch's own passes around a step, one after another: clipping by norm, the average."""
    values = [p.detach() for p in params]
    averages = [p.clone() for p in values]

    def run() -> None:
        torch.nn.utils.clip_grad_norm_(params, passes["max_grad_norm"])
        step()
        torch._foreach_lerp_(averages, values, 1 - passes["ema_decay"])

    return run


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
    peer, params = build(torch.optim, work, device, **work.peer)
    made = {
        "fastopt": build(fastopt, work, device, **work.passes)[0].step,
        "peer": composed(peer.step, params, work.passes) if work.passes else peer.step,
    }
    steps: dict[str, Step] = dict(made)
    if work.timing == "graph":
        steps = {name: captured(step) for name, step in made.items()}
    elements = sum(math.prod(shape) for shape in work.shapes)
    moved = elements * work.dtype.itemsize * work.streams
    source: Tensor | None = None
    if work.bandwidth is not None:
        source = torch.empty(min(moved // 2, 1 << 30), dtype=torch.uint8, device=device)
        target = torch.empty_like(source)
        steps["copy"] = functools.partial(target.copy_, source)
    clock = host_time if work.timing == "host" else device_time
    for step in steps.values():
        for _ in range(WARM_UP):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for index in range(rounds):
        for name in list(steps) if index % 2 == 0 else reversed(list(steps)):
            times[name].append(clock(steps[name]))
    return assess(work, times, moved, 2 * source.numel() if source is not None else 0)


def assess(
    work: Work, samples: dict[str, list[float]], moved: int, copied: int = 0
) -> record.Record:
    """The row of a work from its samples; `moved` and `copied`: bytes of a step and of a copy."""
    ratio = ratios(samples, "fastopt")["peer"]
    row: record.Record = {
        "id": f"{work.name}/{work.cls}",
        "work": work.name,
        "algorithm": work.cls,
        "dtype": str(work.dtype).removeprefix("torch."),
        "tensors": len(work.shapes),
        "elements": sum(math.prod(shape) for shape in work.shapes),
        "bytes_per_param": work.dtype.itemsize * work.streams,
        "peer": "fused" if work.peer == FUSED else "foreach",
        "timing": work.timing,
        "samples": samples,
        "ratio": asdict(ratio),
        "goal": work.goal,
        "bandwidth_goal": work.bandwidth,
    }
    missed = work.goal is not None and ratio.median < work.goal
    if work.bandwidth is not None:
        times = spreads(samples)
        speed = moved / times["fastopt"].median
        row["bandwidth"] = speed / (copied / times["copy"].median)
        missed |= row["bandwidth"] < work.bandwidth
    return row | {"verdict": "short" if missed else "ok"}


def table(found: record.Record) -> pd.DataFrame:
    """A line a work: its ratio and bandwidth, each with its goal."""
    lines = []
    for row in found["rows"]:
        goal, share, share_goal = row["goal"], row.get("bandwidth"), row["bandwidth_goal"]
        missed = goal is not None and row["ratio"]["median"] < goal
        lines.append(
            {
                "work": row["work"],
                "optimizer": f"{row['algorithm']}, {row['dtype']}",
                "against": row["peer"],
                "ratio [quartiles]": ratios(row["samples"], "fastopt")["peer"].text(missed),
                "goal": f"{goal:g}x" if goal else "",
                "of copy's bandwidth": f"{share:.0%}" if share else "",
                "its goal": f"{share_goal:.0%}" if share_goal else "",
                "": row["verdict"],
            }
        )
    return pd.DataFrame(lines)


def parity(device: str) -> list[record.Record]:
    """What every check found; a process of its own, for a fault spoils a device for its process."""
    command = [sys.executable, str(PARITY), device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode not in (0, 1) or not found:
        found.append({"check": "all", "error": f"ended with exit code {done.returncode}"})
    return found


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `gpu`."""
    parser.add_argument("--rounds", type=int, default=25, help="rounds a row (default: 25)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/<device>.json")


def main(arguments: argparse.Namespace) -> int:
    """Parity, then the table; 1 where there is no GPU or a result differs."""
    if not torch.cuda.is_available():
        print("benchmarks gpu needs a GPU that torch can use (torch.cuda.is_available() is False)")
        return 1
    if missing() or os.environ.get("TRITON_INTERPRET") == "1":
        print(f"benchmarks gpu needs Triton, not interpreted: {missing() or 'TRITON_INTERPRET=1'}")
        return 1
    begin = time.perf_counter()
    device = torch.device("cuda", torch.cuda.current_device())
    name = torch.cuda.get_device_name(device)
    found = record.header("gpu", rounds=arguments.rounds)
    found["device"] = {
        "name": name,
        "memory": torch.cuda.get_device_properties(device).total_memory,
    }
    found["parity"] = parity(str(device))
    wrong = [row for row in found["parity"] if row.get("differing") != 0]
    found["notes"] = [
        f"parity with the CPU engine: {len(found['parity'])} checks, {len(wrong)} failed",
        *map(str, wrong),
    ]
    found["rows"] = []
    for work in WORKS:
        found["rows"].append(measure(work, device, arguments.rounds))
        torch.cuda.empty_cache()
    found["seconds"] = time.perf_counter() - begin
    session.show(found, table(found))
    results = Path(__file__).parent / "results"
    record.save(arguments.output or results / f"{name.lower().replace(' ', '-')}.json", found)
    return int(bool(wrong))
