"""Where real training runs: shards over processes, inside torch.compile, within backward().

Works and who takes part, a race over processes, the two races of one process, the table.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

import fastopt
from benchmarks.method import Plan, Samples, Step, interleave, ratios, spreads, timed, verdict
from benchmarks.record import Record
from benchmarks.session import Question, each_of, microseconds
from fastopt.ranks import local

PROCESSES = 2
TIMEOUT = timedelta(minutes=5)
TAIL: dict[str, Any] = {"max_grad_norm": 1.0, "ema_decay": 0.999}
# Every tensor 512 x 256 over both processes; tensors that a small model has; a middling one's.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "60x512x256": [(512, 256)] * 60,
    "mlp": [(10, 784), (10,), (10, 10), (10,)],
    "100x256x256": [(256, 256)] * 100,
    "24x1024x1024": [(1024, 1024)] * 24,
}


@dataclass(frozen=True)
class Row:
    """`against`'s time over fastopt's is to be `goal` at least."""

    work: str
    what: str
    against: str
    goal: float | None

    @property
    def id(self) -> str:
        return f"{self.work}/{self.what}/{self.against}"


Params = list[torch.nn.Parameter]
Made = tuple[Step, Params]
Found = tuple[Samples, dict[str, float]]  # and everybody's error
# Of a weight of about 1 after a few steps of AdamW's, which move it by 1e-3 each.
TOLERANCE = 1e-6
CHECK_STEPS = 3


def check(made: Mapping[str, Made]) -> dict[str, float]:
    """Everybody's error in tolerances: what CHECK_STEPS leave against what the first one's do."""
    errors: dict[str, float] = {}
    first = next(iter(made.values()))[1]
    for name, (step, params) in made.items():
        for _ in range(CHECK_STEPS):
            step()
        pairs = zip(params, first, strict=True)
        errors[name] = max(
            float((local(p.detach()) - local(q.detach())).abs().max()) / TOLERANCE for p, q in pairs
        )
    return errors


def params_of(row: Row, plan: Plan) -> Params:
    generator = torch.Generator().manual_seed(0)
    shapes = [(min(s[0], 8), *s[1:2]) for s in SHAPES[row.work][:4]] if plan.quick else []
    params = []
    for shape in shapes or SHAPES[row.work]:
        param = torch.nn.Parameter(torch.randn(shape, generator=generator))
        param.grad = torch.randn(shape, generator=generator)
        params.append(param)
    return params


# ---- over processes ----
def _sharded(params: Params) -> Params:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (PROCESSES,))
    cut = []
    for param in params:
        assert param.grad is not None
        cut.append(torch.nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])))
        cut[-1].grad = distribute_tensor(param.grad, mesh, [Shard(0)])
    return cut


def _plain(params: Params) -> Params:
    """The same shards, of which nobody knows that they are."""
    cut = []
    for param in _sharded(params):
        cut.append(torch.nn.Parameter(local(param).detach().clone()))
        assert param.grad is not None
        cut[-1].grad = local(param.grad).clone()
    return cut


def _composed(params: Params) -> Made:
    """Torch's clip_grad_norm_, fused AdamW, then an average by lerp."""
    update = torch.optim.AdamW(params, fused=True)
    averages = [p.detach().clone() for p in params]

    @torch.no_grad()
    def step() -> None:
        torch.nn.utils.clip_grad_norm_(params, TAIL["max_grad_norm"], foreach=False)
        update.step()
        for average, param in zip(averages, params, strict=True):
            average.lerp_(param, 1 - TAIL["ema_decay"])

    return step, params


def _stepping(cls: Any, params: Params, **options: Any) -> Made:
    return cls(params, **options).step, params


OVER_PROCESSES: dict[str, dict[str, Callable[[Params], Made]]] = {
    "AdamW, DTensors": {
        "fastopt": lambda params: _stepping(fastopt.AdamW, _sharded(params)),
        "fastopt on plain shards": lambda params: _stepping(fastopt.AdamW, _plain(params)),
        "torch.fused": lambda params: _stepping(torch.optim.AdamW, _sharded(params), fused=True),
    },
    "clip+AdamW+EMA, DTensors": {
        "fastopt": lambda params: _stepping(fastopt.AdamW, _sharded(params), **TAIL),
        "torch.passes": lambda params: _composed(_sharded(params)),
    },
}


def _worker(rank: int, store: str, row: Row, plan: Plan) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=PROCESSES, timeout=TIMEOUT
    )
    makers = OVER_PROCESSES[row.what]
    made = {name: make(params_of(row, plan)) for name, make in makers.items()}
    errors = check(made)

    def clock(step: Step, repeats: int) -> float:
        """Of the slower process, and the same in both, which then do as many rounds."""
        dist.barrier()
        seconds = torch.tensor(timed(step, repeats), dtype=torch.float64)
        dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return seconds.item()

    samples = interleave({name: step for name, (step, _) in made.items()}, plan, clock)
    if rank == 0:
        Path(f"{store}.json").write_text(json.dumps((samples, errors)))
    dist.barrier()
    dist.destroy_process_group()


def _over_processes(row: Row, plan: Plan) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder) / "store")
        mp.spawn(_worker, (store, row, plan), nprocs=PROCESSES)  # type: ignore[attr-defined, no-untyped-call]
        samples, errors = json.loads(Path(f"{store}.json").read_text())
    return samples, errors


# ---- in one process ----
def _compiled(row: Row, plan: Plan) -> Found:
    """step() in a compiled function, and outside of one."""
    ours, theirs, outside = (params_of(row, plan) for _ in range(3))
    our = fastopt.AdamW(ours)
    their = torch.optim.AdamW(theirs, fused=True)

    # A function each: compiled code is found by its function's, and guarded in turn.
    @torch.compile
    def step_ours() -> None:
        our.step()

    @torch.compile
    def step_theirs() -> None:
        their.step()

    made = {
        "fastopt": (step_ours, ours),
        "torch.fused": (step_theirs, theirs),
        "fastopt, outside": (fastopt.AdamW(outside).step, outside),
    }
    return _raced(made, plan)


def _raced(made: Mapping[str, Made], plan: Plan) -> Found:
    errors = check(made)
    return interleave({name: step for name, (step, _) in made.items()}, plan), errors


class _Layer(torch.autograd.Function):
    """Whose gradient costs next to nothing: what is measured is what the step adds."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return x + 0

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (weight,) = ctx.saved_tensors
        return grad, torch.full_like(weight, 1e-3)


def _backward(row: Row, plan: Plan) -> Found:
    """backward() and step() with gradients that are kept, and with those that are not."""

    def training(within: bool) -> Made:
        params = params_of(row, plan)
        optimizer = fastopt.AdamW(params)
        optimizer.zero_grad()

        def loss() -> Tensor:
            x = torch.zeros((), requires_grad=True)
            for param in params:
                x = _Layer.apply(x, param)  # type: ignore[no-untyped-call]
            return x

        def step() -> None:
            if within:
                with optimizer.step_in_backward():
                    loss().backward()  # type: ignore[no-untyped-call]
            else:
                loss().backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                optimizer.zero_grad()

        return step, params

    return _raced({"fastopt": training(True), "step after backward": training(False)}, plan)


RACES: dict[str, Callable[[Row, Plan], Found]] = {
    **dict.fromkeys(OVER_PROCESSES, _over_processes),
    "AdamW, in torch.compile": _compiled,
    "AdamW, in backward": _backward,
}
ROWS = [
    Row("60x512x256", "AdamW, DTensors", "fastopt on plain shards", round(1 / 1.15, 2)),
    Row("60x512x256", "AdamW, DTensors", "torch.fused", 1.4),
    Row("60x512x256", "clip+AdamW+EMA, DTensors", "torch.passes", 1.6),
    *(
        Row(work, "AdamW, in torch.compile", against, goal)
        for work in ("mlp", "100x256x256")
        for against, goal in (("fastopt, outside", round(1 / 1.5, 2)), ("torch.fused", None))
    ),
    Row("100x256x256", "AdamW, in backward", "step after backward", None),
    Row("24x1024x1024", "AdamW, in backward", "step after backward", None),
]


def run_row(row: Row, plan: Plan) -> Record:
    samples, errors = RACES[row.what](row, plan)
    ratio = ratios(samples, "fastopt")[row.against]
    missed = row.goal is not None and ratio.median < row.goal
    wrong = [name for name, error in errors.items() if not error <= 1]
    found = {"samples": samples, "errors": errors, "missed": ["ratio"] * missed, "wrong": wrong}
    judged = "wrong" if wrong else verdict(plan.quick, missed, ratio)
    return asdict(row) | found | {"verdict": judged}


def table(found: Record) -> pd.DataFrame:
    """A line a row: the peer's time over fastopt's."""
    lines = []
    for row in found["rows"]:
        ratio, times = ratios(row["samples"], "fastopt")[row["against"]], spreads(row["samples"])
        lines.append(
            {
                "work": row["work"],
                "optimizer": row["what"],
                "against": row["against"],
                "ratio [quartiles]": ratio.text(missed="ratio" in row["missed"]),
                "goal": f"{row['goal']:g}x" if row["goal"] else "",
                "time": microseconds(times["fastopt"].median),
                "": row["verdict"] * (row["verdict"] != "ok"),
            }
        )
    return pd.DataFrame(lines)


QUESTION = Question(
    "sharded",
    "DTensors over two processes, step() inside torch.compile and within backward()",
    each_of(ROWS, run_row),
    table,
    plan=replace(Plan(), max_rounds=51),
    forces=False,
)
