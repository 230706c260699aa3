"""The table of GPU steps against torch's: rows with their goals, how a GPU is timed, the command.

One command for a machine with a GPU and no network. What the device computes is first checked
against the CPU engine (tests/gpu_parity.py); then its rows are raced as those of the CPU are, where
the floor is a copy of as many bytes on the device.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from math import inf
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from benchmarks import cpu
from benchmarks.contestants import MAKERS, Maker
from benchmarks.cpu import PEERS, judged, work_shapes
from benchmarks.method import Clock, Plan, Step
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, each_of
from benchmarks.tail import AVERAGED, ENTRANTS, Tail
from fastopt.backends.triton import missing

PARITY = Path(__file__).parents[1] / "tests" / "gpu_parity.py"


@dataclass(frozen=True)
class Row(cpu.Row):
    """A line of the table: also how it is timed, and in how many groups its parameters are."""

    timing: str = "device"  # a key of CLOCKS; graph: a captured step's replays
    groups: int = 1

    @property
    def id(self) -> str:
        """With what sets it apart from another row over the same work."""
        return f"{super().id}/{self.timing}/{self.groups}"


# 0.92 and 0.90 of the bandwidth of a copy were asked for.
OF_COPY, OF_COPY_BF16 = 1 / 0.92, 1 / 0.90
# 200 param groups were asked of GPT-2 small, which has 148 tensors: each is a group of its own.
ROWS = [
    Row("1x256M", "AdamW", "fp32", "fused", None, OF_COPY),
    Row("1x256M", "SGD-momentum", "fp32", "fused", None, OF_COPY),
    Row("1x256M", "RMSprop", "fp32", "foreach", 3.0),
    Row("1x256M", "AdamW", "bf16", "fused", 1.0, OF_COPY_BF16),
    Row("1x256M", "SGD-momentum", "bf16", "fused", 1.0, OF_COPY_BF16),
    Row("86x8837", "Adam", "fp32", "fused", 3.0, timing="graph"),
    Row("1000x64", "Adam", "fp32", "fused", 5.0, timing="host"),
    Row("gpt2", "AdamW", "fp32", "fused", 2.0, groups=148),
    Row("gpt2", "clip+AdamW+EMA", "fp32", "passes"),
]


def device_time(step: Step, repeats: int) -> float:
    """Seconds between two events around the steps."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(repeats):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) * 1e-3 / repeats


def host_time(step: Step, repeats: int) -> float:
    """Seconds until the host may go on; the device is idle before."""
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - begin) / repeats


CLOCKS: dict[str, Clock] = {"device": device_time, "host": host_time, "graph": device_time}


def captured(step: Step) -> Step:
    """`step` as a CUDA graph, warmed up on a side stream as torch asks."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy(problem: Problem) -> Step:
    """The floor: a copy on the device that moves the bytes of a step, at most 1 GiB at once."""
    moved = problem.elements * problem.algorithm.bytes_per_param(problem.dtype) // 2
    whole, rest = divmod(moved, 1 << 30)
    source = torch.zeros(min(moved, 1 << 30), dtype=torch.uint8, device=problem.device)
    target = torch.empty_like(source)

    def step() -> None:
        for _ in range(whole):
            target.copy_(source)
        target[:rest].copy_(source[:rest])

    return step


def apex(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """NVIDIA apex's fused class, absent from a row where it has none or is not installed."""
    classes = import_module("apex.optimizers")
    found = getattr(classes, f"Fused{cls.replace('AdamW', 'Adam')}")
    kind = {"adam_w_mode": cls == "AdamW"} if cls.startswith("Adam") else {}
    optimizer: torch.optim.Optimizer = found(params, **options, **kind)
    return optimizer


def grouped(make: Maker, row: Row) -> Maker:
    """`make`'s optimizer over the row's groups of parameters."""
    fixed = {"capturable": True} if row.timing == "graph" else {}

    def maker(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        groups = [{"params": params[i :: row.groups]} for i in range(row.groups)]
        return make(cls, groups, {**options, **fixed})  # type: ignore[arg-type]

    return maker


def run_row(row: Row, plan: Plan, device: str = "cuda") -> Record:
    """Check and time one row."""
    torch.cuda.empty_cache()  # of the row before
    shapes = work_shapes(row.work, plan.quick)
    about = (DTYPES[row.dtype], device)
    if row.against == "passes":
        problem: Problem = Tail(shapes, AVERAGED, *about)
        makers = ENTRANTS["passes"]
    else:
        problem = Problem(shapes, ALGORITHMS[row.algorithm], *about)
        entrants = {name: MAKERS[name] for name in ("fastopt", *PEERS[row.against])}
        entrants |= {"torch.foreach": MAKERS["torch.foreach"], "apex": apex}
        makers = {name: grouped(make, row) for name, make in entrants.items()}
    # How torch rounds on a GPU is not known here: what it computes is timed whatever it is.
    coarse = dict.fromkeys(makers.keys() - {"fastopt"}, inf)
    how: dict[str, Any] = {"clock": CLOCKS[row.timing], "floor": copy}
    if row.timing == "graph":
        how["ready"] = captured
    return judged(asdict(row) | race(problem, makers, plan, coarse, **how), plan.quick)


def table(found: Record) -> pd.DataFrame:
    """As the CPU's; also how a row is timed, and its groups."""
    shown = cpu.table(found)
    shown.insert(2, "timed", [row["timing"] for row in found["rows"]])
    shown.insert(3, "groups", [str(row["groups"]) for row in found["rows"]])
    return shown


def parity(device: str) -> list[Record]:
    """What every check found; a process of its own, for a fault spoils a device for its process."""
    command = [sys.executable, str(PARITY), device]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    if done.returncode not in (0, 1) or not found:
        found.append({"check": "all", "error": f"ended with exit code {done.returncode}"})
    return found


def on_a_gpu(kind: str) -> Record:
    """The device and where its results go; ends the program where there is none."""
    if not torch.cuda.is_available():
        raise SystemExit(f"benchmarks {kind} needs a GPU: torch.cuda.is_available() is False")
    if missing() or os.environ.get("TRITON_INTERPRET") == "1":
        why = missing() or "TRITON_INTERPRET is 1"
        raise SystemExit(f"benchmarks {kind} needs Triton, not interpreted: {why}")
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "device": {"name": about.name, "memory": about.total_memory},
        "out": f"benchmarks/results/{about.name.lower().replace(' ', '-')}/{kind}.json",
    }


def checked() -> Record:
    """The device and what the checks of parity found there."""
    found = on_a_gpu("gpu")
    checks = parity(f"cuda:{torch.cuda.current_device()}")
    failed = [check for check in checks if check.get("differing") != 0]
    said = f"parity with the CPU engine: {len(checks)} checks, {len(failed)} failed"
    return found | {"parity": checks, "failed": failed, "notes": [said, *map(str, failed)]}


QUESTION = Question(
    "gpu",
    "parity on the GPU, then its table; needs a GPU, no network",
    each_of(ROWS, run_row),
    table,
    # One placement: two of everything that is raced need not fit the device.
    Plan(min_rounds=25, min_sample=0.0, placements=1),
    forces=False,
    about=checked,
)
