"""Sharded over processes against one process: every layout, all classes, to the bit; what is global
is agreed on.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from processes import mesh_of, run
from support import ON_TRITON, unlike, values
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fastopt

pytestmark = pytest.mark.skipif(ON_TRITON, reason="the passes of shards are the CPU's")

# Uneven shards, and on some processes empty ones; none is cut within a block of 64.
SHAPES = [(7, 128), (2, 256), (128, 512), (256,), ()]


class Layout(NamedTuple):
    """A mesh, and how each of SHAPES lies on it; None: a plain tensor, the same everywhere."""

    mesh: tuple[int, ...]
    placements: tuple[tuple[Any, ...] | None, ...]
    dims: str = ""  # of each, the dimension that is its mesh; without any, all are


ROWS, COLUMNS, WHOLE = Shard(0), Shard(1), Replicate()
LAYOUTS = {
    "replicated": Layout((2,), (None,) * 5),
    "rows": Layout((4,), ((ROWS,),) * 4 + ((WHOLE,),)),
    "hybrid": Layout((2, 2), ((WHOLE, ROWS),) * 4 + ((WHOLE, WHOLE),)),
    "columns": Layout((2,), ((COLUMNS,), (ROWS,), (COLUMNS,), (WHOLE,), (WHOLE,))),
    "both": Layout((2, 2), ((ROWS, COLUMNS),) * 3 + ((ROWS, WHOLE), (WHOLE, WHOLE))),
    "mixed": Layout((2,), (None, (ROWS,), (COLUMNS,), (WHOLE,), None)),
    "meshes": Layout((2, 2), (None, (ROWS,), (COLUMNS,), (ROWS,), (WHOLE,)), "ababa"),
}
ASKED: list[dict[str, Any]] = [
    {},
    {"max_grad_norm": 0.5, "ema_decay": 0.9, "track_stats": True, "skip_nonfinite": True},
    {"state_bits": 16},
    {"state_bits": 8, "min_8bit_size": 64, "max_grad_value": 0.5},
]


class Twins:
    """The same parameters in one process and sharded."""

    def __init__(self, layout: Layout, make: Callable[..., Any], dtype: torch.dtype, **asked: Any):
        self.mesh = mesh_of(*layout.mesh, names=("a", "b")[: len(layout.mesh)])
        self.layout = layout
        self.whole = [torch.nn.Parameter(values(s, dtype, seed=i)) for i, s in enumerate(SHAPES)]
        self.parts = [torch.nn.Parameter(self.cut(i, p.detach())) for i, p in enumerate(self.whole)]
        self.alone, self.together = make(self.whole, **asked), make(self.parts, **asked)

    def cut(self, i: int, t: Tensor) -> Tensor:
        placements, dims = self.layout.placements[i], self.layout.dims
        mesh = self.mesh[dims[i]] if dims else self.mesh
        if placements is not None:  # all processes have it: no scatter
            t = distribute_tensor(t, mesh, placements, src_data_rank=None)
        return t.clone()  # or it would be, or lie within, the whole's memory

    def grads(self, k: int) -> None:
        for i, (p, q) in enumerate(zip(self.whole, self.parts, strict=True)):
            p.grad = values(p.shape, p.dtype, seed=100 * k + i)
            q.grad = self.cut(i, p.grad)

    def step(self) -> None:
        self.alone.step()
        self.together.step()

    def check(self) -> None:
        for i, (p, q) in enumerate(zip(self.whole, self.parts, strict=True)):
            same(p.detach(), q.detach(), f"parameter {i}")
            state, parts = self.alone.state[p], self.together.state[q]
            assert state.keys() == parts.keys(), i
            for name in state:
                same(state[name], parts[name], f"{name} of {i}")


def same(whole: Tensor, part: Tensor, what: str) -> None:
    part = part.full_tensor() if isinstance(part, DTensor) else part
    assert torch.equal(whole, part), what


def close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)


def check_layout(layout: Layout) -> None:
    for optimizer in unlike():
        for asked in ASKED:
            hyper = {k: v for k, v in optimizer.strongest.items() if k != "maximize"}
            twins = Twins(layout, optimizer.ours, torch.float32, **hyper, **asked)
            for k in range(3):
                twins.grads(k)
                twins.step()
            if "max_grad_norm" not in asked:
                twins.check()
                continue
            # The norm is a sum over processes: not in one process's order.
            close(twins.together.grad_norm, twins.alone.grad_norm)
            for p, q in zip(twins.whole, twins.parts, strict=True):
                q = q.full_tensor() if isinstance(q, DTensor) else q
                torch.testing.assert_close(p.detach(), q.detach(), rtol=1e-4, atol=1e-5)
            found = twins.together.stats()
            for name, stats in twins.alone.stats().items():
                assert found[name] == pytest.approx(stats, rel=1e-3), name
        explained = fastopt.explain(twins.together)
        assert {bucket.path for bucket in explained.buckets} == {"cpu"}
        cut = any(placements is not None for placements in layout.placements)
        assert ("local shards of " in str(explained)) == cut


def check_layouts() -> None:
    for name, layout in LAYOUTS.items():
        if torch.Size(layout.mesh).numel() == dist.get_world_size():
            try:
                check_layout(layout)
            except Exception as error:
                raise AssertionError(f"layout {name!r}") from error


def check_agreement() -> None:
    """One process's NaN, one's missing gradient."""
    rank = dist.get_rank()
    twins = Twins(
        LAYOUTS["rows"], fastopt.AdamW, torch.float32, skip_nonfinite=True, max_grad_norm=1.0
    )
    twins.grads(0)
    if rank == 3:
        twins.parts[2].grad.to_local()[0, 0] = float("nan")
    before = [q.full_tensor() for q in twins.parts if isinstance(q, DTensor)]
    twins.together.step()
    assert twins.together.skipped_steps == 1
    assert not twins.together.grad_norm.isfinite()
    after = [q.full_tensor() for q in twins.parts if isinstance(q, DTensor)]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    for k in range(1, 4):
        twins.grads(k)
        if rank == 1:
            twins.parts[1].grad = None  # its shard is empty there
        twins.together.step()
    assert twins.together.skipped_steps == 1


def check_waiting() -> None:
    """Rules that wait for norms, where a process has nothing to measure and others wait for it: its
    one shard is empty and has no gradient.
    """
    mesh = mesh_of(dist.get_world_size())
    for cls in (fastopt.LAMB, fastopt.LARS):
        whole = torch.nn.Parameter(values((1, 64), torch.float32, seed=0))
        part = torch.nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, [Shard(0)]))
        alone, together = cls([whole], weight_decay=0.1), cls([part], weight_decay=0.1)
        for k in range(2):
            whole.grad = values((1, 64), torch.float32, seed=1 + k)
            part.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
            if part.to_local().numel() == 0:
                part.grad = None
            alone.step()
            together.step()
        same(whole.detach(), part.detach(), cls.__name__)


def check_norm_group() -> None:
    """Plain tensors that are one process's own, as pipeline stages have them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    params = [torch.nn.Parameter(values((64,), torch.float32, seed=i)) for i in range(size)]
    whole = fastopt.AdamW([p.detach().clone().requires_grad_() for p in params], max_grad_norm=0.1)
    own = fastopt.AdamW([params[rank]], max_grad_norm=0.1, norm_group=dist.group.WORLD)
    for k in range(2):
        for i, p in enumerate(whole.param_groups[0]["params"]):
            p.grad = values((64,), torch.float32, seed=10 * k + i)
            if i == rank:
                params[i].grad = p.grad.clone()
        whole.step()
        own.step()
        close(own.grad_norm, whole.grad_norm)
    close(params[rank].detach(), whole.param_groups[0]["params"][rank].detach())


def check_averages() -> None:
    """Swapped in and out, also where a shard is empty; a parameter that is cut twice."""
    mesh = mesh_of(2, 2)
    asked = {"state_bits": 8, "min_8bit_size": 1, "master_weight_bits": 24, "ema_decay": 0.5}
    for shape, placements in (((1, 128), [ROWS, WHOLE]), ((128,), [ROWS, ROWS])):
        whole = torch.nn.Parameter(values(shape, torch.bfloat16, seed=0))
        part = torch.nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, placements))
        alone, together = fastopt.AdamW([whole], **asked), fastopt.AdamW([part], **asked)
        for k in range(3):
            whole.grad = values(shape, torch.bfloat16, seed=k)
            part.grad = distribute_tensor(whole.grad.clone(), mesh, placements)
            alone.step()
            together.step()
            live = part.full_tensor()
            with together.swap_ema(), alone.swap_ema():
                if "exp_avg_scale" in together.state[part]:
                    same(whole.detach(), part.detach(), f"average of {shape}")
            same(live, part.detach(), f"{shape} after the swap")
        coded = "exp_avg_scale" in together.state[part]
        assert coded == (len(shape) == 2)  # else its blocks would be cut
        if coded:
            same(whole.detach(), part.detach(), f"{shape}")


def check_triton() -> None:
    """Its tables have the whole's shape: a DTensor takes torch's step there, as before."""
    twins = Twins(LAYOUTS["rows"]._replace(mesh=(2,)), fastopt.AdamW, torch.float32)
    twins.together.param_groups[0]["track_stats"] = True
    twins.alone.param_groups[0]["track_stats"] = True
    for k in range(2):
        twins.grads(k)
        twins.step()
    assert "which Triton's kernels do not take" in str(fastopt.explain(twins.together))
    for p, q in zip(twins.whole, twins.parts, strict=True):
        torch.testing.assert_close(p.detach(), q.full_tensor().detach())
    for name, stats in twins.alone.stats().items():
        assert twins.together.stats()[name] == pytest.approx(stats, rel=1e-3)
    twins.together.param_groups[0]["state_bits"] = 8
    with pytest.raises(RuntimeError, match="state_bits=8 needs fastopt's own kernels"):
        twins.together.step()


def test_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    run(2, check_triton)


def check_partial_gradients() -> None:
    """A gradient that is still to be summed is, before it is used."""
    mesh = mesh_of(2)
    whole = torch.nn.Parameter(values((8, 64), torch.float32, seed=0))
    part = torch.nn.Parameter(distribute_tensor(whole.detach(), mesh, [ROWS]))
    alone, together = fastopt.AdamW([whole]), fastopt.AdamW([part])
    for k in range(2):
        shares = [values((8, 64), torch.float32, seed=2 * k + i) for i in range(2)]
        whole.grad = shares[0] + shares[1]
        part.grad = DTensor.from_local(shares[dist.get_rank()], mesh, [Partial()])
        alone.step()
        together.step()
    same(whole.detach(), part.detach(), "parameter")


def check_modes() -> None:
    """Averages in and out of the parameters, corrections with them; one shard is empty."""
    mesh = mesh_of(2)
    formats = {"master_weight_bits": 24, "state_bits": 8, "min_8bit_size": 64}
    for cls, shape in product((fastopt.SGDScheduleFree, fastopt.AdamWScheduleFree), SHARDED):
        for dtype, asked in ((torch.float32, {}), (torch.bfloat16, {}), (torch.bfloat16, formats)):
            whole = torch.nn.Parameter(values(shape, dtype, seed=0))
            part = torch.nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, [Shard(0)]))
            alone, together = cls([whole], **asked), cls([part], **asked)
            for k in range(3):
                whole.grad = values(shape, dtype, seed=1 + k)
                part.grad = distribute_tensor(whole.grad, mesh, [Shard(0)])
                alone.step()
                together.step()
            for mode in ("eval", "train"):
                getattr(alone, mode)()
                getattr(together, mode)()
                same(whole.detach(), part.detach(), f"{cls.__name__} {dtype} {mode}")


SHARDED = [(8, 64), (1, 64)]
CHECKS: dict[int, list[Callable[[], None]]] = {
    2: [check_layouts, check_waiting, check_norm_group, check_partial_gradients, check_modes],
    4: [check_layouts, check_agreement, check_averages],
}


def check_all() -> None:
    for check in CHECKS[dist.get_world_size()]:
        try:
            check()
        except Exception as error:
            raise AssertionError(check.__name__) from error


@pytest.mark.parametrize("size", CHECKS)
def test_sharded(size: int) -> None:
    """All in one run: to start processes takes seconds."""
    run(size, check_all)
