"""torch's own wrappers against one process: the layouts, then trainings, exact bits, gradients that
one process lacks, memory, and the warning where nobody names the processes.
"""

from __future__ import annotations

import gc
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from processes import mesh_of, run
from support import ON_TRITON, params_of, unlike, values
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FullyShardedDataParallel,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import fastopt
from fastopt import _core

pytestmark = pytest.mark.skipif(ON_TRITON, reason="the passes of shards are the CPU's")

STEPS, BATCH = 4, 8
PASSES: dict[str, Any] = {
    "max_grad_norm": 0.05,
    "ema_decay": 0.9,
    "track_stats": True,
    "skip_nonfinite": True,
}


class Net(nn.Module):
    """Rows that no number of processes divides, and fewer than four of them in `down`."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 7), nn.Linear(7, 1, bias=False)
        for i, p in enumerate(self.parameters()):
            p.data = values(p.shape, dtype, seed=i) / p.shape[-1] ** 0.5

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(torch.tanh(self.up(x)))
        return result


# ---- the layouts ----
class Wrapped(NamedTuple):
    """A net of torch's, on whose processes batches and parameters are spread."""

    net: nn.Module
    share: tuple[int, int] = (0, 1)  # this process's of each batch
    last: bool = True  # whether a NaN comes up in what this process has of the gradients


def ddp(net: Net) -> Wrapped:
    # A bad gradient is everybody's after the all-reduce.
    return Wrapped(DistributedDataParallel(net), (dist.get_rank(), dist.get_world_size()))


def own(net: nn.Module) -> Wrapped:
    rank, size = dist.get_rank(), dist.get_world_size()
    return Wrapped(net, (rank, size), rank == size - 1)


def fsdp2(net: Net, **options: Any) -> Wrapped:
    fully_shard(net.up, **options)
    fully_shard(net, **options)
    return own(net)


def offload(net: Net) -> Wrapped:
    # Pinned memory, the default, needs an accelerator.
    return fsdp2(net, offload_policy=CPUOffloadPolicy(pin_memory=False))


def hybrid(net: Net) -> Wrapped:
    mesh = mesh_of(2, 2, names=("replicas", "shards"))
    wrapped = fsdp2(net, mesh=mesh)
    return wrapped._replace(last=mesh.get_local_rank("shards") == 1)  # of both replicas


def tensor_parallel(net: Net, mesh: Any = None) -> Wrapped:
    mesh = mesh or mesh_of(dist.get_world_size())
    # What it passes on as a plain tensor has to be cut evenly.
    plan = {"up": ColwiseParallel(use_local_output=False), "down": RowwiseParallel()}
    parallelize_module(net, mesh, plan)
    return Wrapped(net, last=mesh.get_local_rank() == mesh.size() - 1)


def both(net: Net) -> Wrapped:
    mesh = mesh_of(2, 2, names=("data", "model"))
    tensor_parallel(net, mesh["model"])
    wrapped = fsdp2(net, mesh=mesh["data"])
    return wrapped._replace(share=(mesh.get_local_rank("data"), 2))


def fsdp1(net: Net, original: bool) -> Wrapped:
    # It asks for an accelerator unless it is told the device.
    cpu = torch.device("cpu")
    return own(FullyShardedDataParallel(net, use_orig_params=original, device_id=cpu))


def fsdp1_flat(net: Net) -> Wrapped:
    return fsdp1(net, False)


def fsdp1_original(net: Net) -> Wrapped:
    return fsdp1(net, True)


def make_zero(cls: Any, params: Any, **asked: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit's, at the import
        from torch.distributed.optim import ZeroRedundancyOptimizer
    return ZeroRedundancyOptimizer(params, optimizer_class=cls, **asked)


def make(wrap: Any, cls: Any, net: nn.Module, **asked: Any) -> tuple[Any, Any]:
    """(what the training steps, the optimizer of ours in it)."""
    if wrap is zero:
        outer = make_zero(cls, net.parameters(), **asked)
        return outer, outer.optim
    made = cls(net.parameters(), **asked)
    return made, made


def zero(net: Net) -> Wrapped:
    # With four processes the last one's share is no parameter.
    return ddp(net)._replace(last=dist.get_rank() == 0)


UNNAMED = (fsdp1_flat, fsdp1_original, zero)  # whose tensors do not tell who shares the model
OF_DTENSORS = (fsdp2, offload, hybrid, tensor_parallel, both)
LAYOUTS: dict[int, list[Callable[[Net], Wrapped]]] = {
    2: [ddp, fsdp2, offload, fsdp1_flat, fsdp1_original, zero],
    4: [fsdp2, hybrid, tensor_parallel, both, fsdp1_original, zero],
}


@contextmanager
def whole(net: nn.Module) -> Iterator[list[Tensor]]:
    """All parameters of the model on every process, in its order."""
    flat = isinstance(net, FullyShardedDataParallel)
    with FullyShardedDataParallel.summon_full_params(net) if flat else nullcontext():
        yield [full(p) for p in net.parameters()]


def full(t: Tensor) -> Tensor:
    t = t.detach()
    return t.full_tensor() if isinstance(t, DTensor) else t


def memory_of(t: Tensor) -> Tensor:
    return t.to_local() if isinstance(t, DTensor) else t


def backward(net: nn.Module, k: int, share: tuple[int, int] = (0, 1)) -> None:
    """The mean over a batch, of which each process has its part."""
    dtype = next(net.parameters()).dtype
    x, y = values((BATCH, 64), dtype, seed=100 + k), values((BATCH, 1), dtype, seed=200 + k)
    rank, size = share
    x, y = x.chunk(size)[rank], y.chunk(size)[rank]
    (net(x) - y).square().mean().backward()


# ---- trainings ----
def check_training(wrap: Any, cls: Any, **asked: Any) -> None:
    """In float64, where sums in another order are near enough for every update rule."""
    alone = Net()
    single = cls(alone.parameters(), **asked)
    wrapped = wrap(Net())
    asks = asked | ({"norm_group": dist.group.WORLD} if wrap in UNNAMED else {})
    stepped, together = make(wrap, cls, wrapped.net, **asks)
    bad = 2 if "skip_nonfinite" in asked else None  # the step with a NaN
    for k in range(STEPS):
        for optimizer in (single, stepped):
            optimizer.zero_grad()
        backward(alone, k)
        backward(wrapped.net, k, wrapped.share)
        if k == bad:
            poison([alone.up.weight])
            if wrapped.last:
                poison(params_of(together))
        for optimizer in (single, stepped):
            optimizer.step()
        if "max_grad_norm" in asked:
            close(together.grad_norm.double(), single.grad_norm, "norm")  # float32 without any
        if "track_stats" in asked and wrap not in UNNAMED:
            assert together.stats().keys() == single.stats().keys()
            for name, stats in single.stats().items():
                assert together.stats()[name] == pytest.approx(stats, rel=1e-6), name
    assert together.skipped_steps == single.skipped_steps == (bad is not None)
    same_weights(wrapped.net, alone)
    if "ema_decay" in asked and wrap is not zero:  # there each process has some averages
        with together.swap_ema(), single.swap_ema():
            same_weights(wrapped.net, alone)
        same_weights(wrapped.net, alone)


def poison(params: list[Tensor]) -> None:
    grads = [memory_of(p.grad) for p in params if p.grad is not None]
    next(g for g in grads if g.numel()).view(-1)[0] = torch.nan


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    with whole(ours) as params:
        for p, (name, q) in zip(params, theirs.named_parameters(), strict=True):
            close(p, q.detach(), name)


def close(ours: Any, theirs: Any, what: str) -> None:
    torch.testing.assert_close(
        ours, theirs, rtol=1e-6, atol=1e-9, equal_nan=True, msg=lambda m: f"{what}: {m}"
    )


def check_bits(wrap: Any, cls: Any, dtype: torch.dtype, **asked: Any) -> None:
    """One process steps with the gradients that the wrapper came to: equal to the bit, compact
    formats and their noise too.
    """
    alone = Net(dtype)
    wrapped = wrap(Net(dtype))
    single, together = cls(alone.parameters(), **asked), cls(wrapped.net.parameters(), **asked)
    for k in range(3):
        together.zero_grad()
        backward(wrapped.net, k, wrapped.share)
        for p, q in zip(alone.parameters(), wrapped.net.parameters(), strict=True):
            p.grad = full(q.grad)
        single.step()
        together.step()
    for p, q in zip(alone.parameters(), wrapped.net.parameters(), strict=True):
        assert torch.equal(p.detach(), full(q))
        assert single.state[p].keys() == together.state[q].keys()
        for name, t in single.state[p].items():
            assert torch.equal(t, full(together.state[q][name])), name


FORMATS: dict[str, Any] = {"state_bits": 8, "min_8bit_size": 64, "master_weight_bits": 24}


def check_layouts() -> None:
    for wrap in LAYOUTS[dist.get_world_size()]:
        for optimizer in unlike():
            hyper = {k: v for k, v in optimizer.strongest.items() if k != "maximize"}
            if _core.waits_for_norms(optimizer.ours._rule) and wrap in (fsdp1_flat, fsdp1_original):
                continue  # whose parts nothing shows to be parts of a tensor
            try:
                check_training(wrap, optimizer.ours, **hyper, **PASSES)
                if wrap in OF_DTENSORS:
                    check_bits(wrap, optimizer.ours, torch.bfloat16, **hyper, **FORMATS)
            except Exception as error:
                raise AssertionError(f"{optimizer} under {wrap.__name__}") from error


def check_stages() -> None:
    """Two pipeline stages, each sharded over two processes: DTensors tell half, norm_group half."""
    mesh = mesh_of(2, 2, names=("pipeline", "data"))
    alone, net = Net(), Net()
    stage = (net.up, net.down)[mesh.get_local_rank("pipeline")]
    fully_shard(stage, mesh=mesh["data"])
    name = "up" if stage is net.up else "down"
    single = fastopt.AdamW(alone.parameters(), **PASSES)
    group = mesh.get_group("pipeline")
    together = fastopt.AdamW(stage.parameters(), **PASSES, norm_group=group)
    for k in range(STEPS):
        single.zero_grad()
        backward(alone, k)
        whole = dict(getattr(alone, name).named_parameters())
        for key, p in stage.named_parameters():
            p.grad = distribute_tensor(whole[key].grad.clone(), mesh["data"], p.placements)
        if k == 1:
            poison([alone.up.weight])
            if dist.get_rank() == 1:  # of the first stage
                poison(list(stage.parameters()))
        single.step()
        together.step()
        close(together.grad_norm, single.grad_norm, "norm")
    assert together.skipped_steps == single.skipped_steps == 1
    for key, p in stage.named_parameters():
        close(full(p), whole[key].detach(), key)


# ---- what one process lacks or finds ----
def check_missing_gradients() -> None:
    """What the others have is clipped by the norm of what is there, and nobody waits."""
    for missing in range(2):  # the step
        alone, wrapped = Net(), fsdp2(Net())
        single = fastopt.AdamW(alone.parameters(), max_grad_norm=0.05)
        together = fastopt.AdamW(wrapped.net.parameters(), max_grad_norm=0.05)
        for k in range(missing + 1):
            kept = full(wrapped.net.up.bias)[4:]  # the rows of the second process
            for optimizer in (single, together):
                optimizer.zero_grad()
            backward(alone, k)
            backward(wrapped.net, k, wrapped.share)
            if k == missing:
                alone.up.bias.grad[4:] = 0
                if dist.get_rank() == 1:
                    wrapped.net.up.bias.grad = None
            for optimizer in (single, together):
                optimizer.step()
            close(together.grad_norm, single.grad_norm, f"norm {k}")
        assert torch.equal(full(wrapped.net.up.bias)[4:], kept)
        close(full(wrapped.net.up.weight), alone.up.weight.detach(), "weight")
        close(full(wrapped.net.up.bias)[:4], alone.up.bias.detach()[:4], "bias")
        backward(wrapped.net, 2, wrapped.share)
        together.step()  # it is there again
        assert not torch.equal(full(wrapped.net.up.bias)[4:], kept)


def check_scaler() -> None:
    """What GradScaler finds on one process makes all leave the step out, fused or not."""
    sharded = partial(ShardedGradScaler, "cpu")
    for wrap, scaler_of, group in (
        (fsdp2, partial(torch.amp.GradScaler, "cpu"), None),
        (fsdp1_flat, sharded, dist.group.WORLD),
    ):
        for fused in (False, True):
            wrapped = wrap(Net(torch.float32))
            made = fastopt.AdamW(
                wrapped.net.parameters(), max_grad_norm=0.05, fused=fused, norm_group=group
            )
            scaler = scaler_of(init_scale=4.0)
            scaler.scale(torch.ones(()))  # which begins it: the gradients count as scaled
            for k in range(3):
                made.zero_grad()
                backward(wrapped.net, k, wrapped.share)
                before = [full(p).clone() for p in wrapped.net.parameters()]
                if k == 1 and wrapped.last:
                    poison(params_of(made))
                scaler.step(made)
                scaler.update()
                pairs = zip(wrapped.net.parameters(), before, strict=True)
                assert all(torch.equal(full(p), q) for p, q in pairs) == (k == 1)
            assert scaler.get_scale() == 2.0


def check_zero_checkpoint() -> None:
    """ZeRO keeps what it is made with in its param groups, where no process group can be saved: set
    on its inner optimizer, the norm's is not in them.
    """
    wrapped = zero(Net())
    outer, inner = make(zero, fastopt.AdamW, wrapped.net, max_grad_norm=0.05)
    inner.norm_group = dist.group.WORLD
    backward(wrapped.net, 0, wrapped.share)
    outer.step()
    outer.consolidate_state_dict(to=0)
    if dist.get_rank() == 0:
        saved = outer.state_dict()
        assert "norm_group" not in saved["param_groups"][0]
        assert {"step", "exp_avg", "exp_avg_sq"} == {*saved["state"][0]} == {*saved["state"][2]}


# ---- memory ----
def held() -> tuple[int, int, int]:
    """Objects, specs of DTensors among them, resident bytes."""
    gc.collect()
    objects = gc.get_objects()
    specs = sum(type(found) is DTensorSpec for found in objects)
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return len(objects), specs, pages * resource.getpagesize()


def check_memory() -> None:
    wrapped = fsdp2(Net(torch.float32))
    made = fastopt.AdamW(wrapped.net.parameters(), **PASSES)
    backward(wrapped.net, 0, wrapped.share)
    for _ in range(200):
        made.step()
    before = held()
    for _ in range(1000):
        made.step()
    objects, specs, resident = (now - then for now, then in zip(held(), before, strict=True))
    assert before[1] >= 3  # of the parameters: they can be counted
    assert specs == 0
    assert objects < 20
    assert resident < 2 << 20


# ---- the warning ----
def warned(made: Any, net: nn.Module, text: str = "norm_group") -> list[warnings.WarningMessage]:
    inner = getattr(made, "optim", made)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        for k in range(3):
            inner.norm_group = inner.norm_group  # each step is planned anew
            backward(net, k, (dist.get_rank(), dist.get_world_size()))
            made.step()
            made.zero_grad()
    return [w for w in found if text in str(w.message)]


def no_shard(net: Net) -> Wrapped:
    strategy, cpu = ShardingStrategy.NO_SHARD, torch.device("cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return own(FullyShardedDataParallel(net, sharding_strategy=strategy, device_id=cpu))


def check_warning() -> None:
    """Once an optimizer; not where tensors or the user tell, nor where nothing is global."""
    clips, skips = {"max_grad_norm": 0.1}, {"skip_nonfinite": True}
    make_zero(torch.optim.SGD, Net().parameters())  # from now on the heap is searched
    for wrap in (ddp, fsdp2, no_shard):
        net = wrap(Net()).net
        assert not warned(fastopt.AdamW(net.parameters(), **clips), net), wrap
    for wrap in UNNAMED:
        for asked in (clips, skips):
            net = wrap(Net()).net
            (found,) = warned(make(wrap, fastopt.AdamW, net, **asked)[0], net)
            assert f"AdamW a part of the model, and {next(iter(asked))} goes" in str(found.message)
            assert (found.filename == __file__) == (wrap is not zero)
        group = dist.group.WORLD
        assert not warned(make(wrap, fastopt.AdamW, net, **clips, norm_group=group)[0], net)
        assert not warned(make(wrap, fastopt.AdamW, net, max_grad_value=1.0)[0], net)
        flat = wrap in (fsdp1_flat, fsdp1_original)
        lamb = make(wrap, fastopt.LAMB, net, norm_group=group)[0]
        found = warned(lamb, net, "shard with FSDP2")
        assert len(found) == flat  # ZeRO hands out whole tensors


CHECKS: dict[int, list[Callable[[], None]]] = {
    2: [
        check_layouts,
        check_missing_gradients,
        check_scaler,
        check_zero_checkpoint,
        check_memory,
        check_warning,
    ],
    4: [check_layouts, check_stages],
}


def check(size: int) -> None:
    for each in CHECKS[size]:
        each()


@pytest.mark.parametrize("size", CHECKS)
def test_wrapped(size: int) -> None:
    """In one start of the processes, which takes longer than any of the checks."""
    run(size, check, size)
