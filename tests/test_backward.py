"""The step within backward(): the bits of a step after it, gradients that never exist all at once;
what it needs all of them for.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.distributed as dist
from processes import mesh_of, run
from support import ON_TRITON, Optimizer, assert_same_state, params_of, unlike
from torch import Tensor
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

import fastopt
from fastopt import _core
from fastopt.optim import _backward

pytestmark = pytest.mark.skipif(ON_TRITON, reason="shares are the host's")

OWN: list[dict[str, Any]] = [
    {},
    {"ema_decay": 0.5, "track_stats": True, "max_grad_value": 0.01, "l1": 1e-3},
    {"state_bits": 8, "min_8bit_size": 64},
    {"state_bits": 16, "rounding_seed": 3},
]
SHARE_BYTES = 20_000  # more than a weight, less than two
GLOBAL = {"max_grad_norm": 1e-3, "skip_nonfinite": True}


@pytest.fixture(autouse=True)
def _small_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_backward, "SHARE_BYTES", SHARE_BYTES)


class Net(torch.nn.Module):
    """Seven parameters, of which two are used twice, if asked for, and one not at all."""

    def __init__(self, twice: bool = True) -> None:
        super().__init__()
        self.twice = twice
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(64, 64) for _ in range(3))
        self.unused = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in [*self.layers, *[self.layers[1]] * self.twice]:
            x = torch.tanh(layer(x))
        return x


def loss_of(net: torch.nn.Module, k: int) -> Tensor:
    return net(torch.randn(8, 64, generator=torch.Generator().manual_seed(k))).square().sum()


def twins(optimizer: Optimizer, **own: Any) -> tuple[list[Net], list[Any]]:
    nets = [Net(), Net()]
    hyper = {**optimizer.strongest, **own}
    return nets, [optimizer.ours(net.parameters(), **hyper) for net in nets]


def check(a: Any, b: Any) -> None:
    for p, q in zip(params_of(a), params_of(b), strict=True):
        assert torch.equal(p.detach(), q.detach())
    assert_same_state(a, b)


@pytest.mark.parametrize("own", OWN, ids=str)
def test_as_after_backward(optimizer: Optimizer, own: dict[str, Any]) -> None:
    """With accumulated gradients too, and with a learning rate that a scheduler changes."""
    nets, (inside, after) = twins(optimizer, **own)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (inside, after)]
    for k in range(4):
        if k % 2:
            for net in nets:
                loss_of(net, 10 + k).backward()
        with inside.step_in_backward():
            loss_of(nets[0], k).backward()
        assert all(p.grad is None for p in params_of(inside))
        loss_of(nets[1], k).backward()
        after.step()
        after.zero_grad()
        check(inside, after)
        if "track_stats" in own:
            assert inside.stats() == after.stats()
        for scheduler in schedulers:
            scheduler.step()
    loss_of(nets[0], 5).backward()
    loss_of(nets[1], 5).backward()
    inside.step()
    after.step()
    check(inside, after)


def test_gradients_never_exist_all_at_once() -> None:
    net = Net()
    made = fastopt.AdamW(net.parameters())
    alive: list[int] = []

    def watch(_: Tensor) -> None:
        alive.append(sum(p.grad.nbytes for p in net.parameters() if p.grad is not None))

    for k in range(3):
        with made.step_in_backward():
            handles = [p.register_post_accumulate_grad_hook(watch) for p in net.parameters()]
            loss_of(net, k).backward()
        for handle in handles:
            handle.remove()
    largest = max(p.nbytes for p in net.parameters())
    assert max(alive) <= _backward.SHARE_BYTES + largest < sum(p.nbytes for p in net.parameters())


def test_exact_clipping_for_a_second_pass(optimizer: Optimizer) -> None:
    nets, (inside, after) = twins(optimizer, **GLOBAL)
    for k in range(3):
        loss = loss_of(nets[0], k) * (float("inf") if k == 1 else 1)
        with inside.norm_in_backward():
            loss.backward(retain_graph=True)
        assert all(p.grad is None for p in params_of(inside))
        with inside.step_in_backward():
            loss.backward()
        (loss_of(nets[1], k) * (float("inf") if k == 1 else 1)).backward()
        after.step()
        after.zero_grad()
        torch.testing.assert_close(
            inside.grad_norm, after.grad_norm, rtol=1e-4 if k else 1e-6, atol=0, equal_nan=True
        )
        assert inside.skipped_steps == after.skipped_steps == int(k > 0)
        for p, q in zip(params_of(inside), params_of(after), strict=True):
            # Later on, what is left of a last place in the norm is magnified by sqrt(v) near 0.
            close = {"rtol": 1e-5, "atol": 1e-7} if k == 0 else {"rtol": 1e-2, "atol": 1e-4}
            torch.testing.assert_close(p, q, **close)


def test_what_is_refused() -> None:
    net = Net()
    made = fastopt.AdamW(net.parameters(), max_grad_norm=1.0)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="need all gradients before"), made.step_in_backward():
        loss_of(net, 0).backward()
    loss_of(net, 0).backward()
    with pytest.raises(RuntimeError, match="has a gradient already"), made.norm_in_backward():
        loss_of(net, 0).backward()
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())
    made = fastopt.AdamW(net.parameters())
    with made.step_in_backward():
        loss_of(net, 0).backward()
        loss = loss_of(net, 1)
        with pytest.raises(RuntimeError, match="gets a second gradient"):
            loss.backward()
    assert all(not p._post_accumulate_grad_hooks for p in net.parameters())
    made = fastopt.AdamW(net.parameters(), ema_decay=0.5)
    loss_of(net, 0).backward()
    made.step()
    with (
        made.swap_ema(),
        pytest.raises(RuntimeError, match="inside swap_ema"),
        made.step_in_backward(),
    ):
        pass


def test_a_norm_is_good_for_its_gradients_alone() -> None:
    """Neither after a pass that failed nor after a step() that had no need of it."""
    net = Net()
    made = fastopt.AdamW(net.parameters(), max_grad_norm=1.0)

    def fails() -> None:
        raise ValueError("in the middle")

    for spoil in (fails, made.step):
        loss = loss_of(net, 0)
        with made.norm_in_backward():
            loss.backward(retain_graph=True)
        with suppress(ValueError):
            if spoil is fails:
                with made.step_in_backward():
                    spoil()
            else:
                spoil()
        with pytest.raises(RuntimeError, match="need all gradients"), made.step_in_backward():
            loss.backward()


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice(optimizer: Optimizer) -> None:
    nets = [Net(), Net()]
    inside, after = (
        optimizer.ours([net.layers[0].weight] * 2 + [net.layers[1].weight], **optimizer.strongest)
        for net in nets
    )
    for k in range(2):
        with inside.step_in_backward():
            loss_of(nets[0], k).backward()
        loss_of(nets[1], k).backward()
        after.step()
        after.zero_grad()
        for net in nets:
            net.zero_grad()
        check(inside, after)


def test_corrections_outlive_a_pass_that_fails() -> None:
    """Shares updated before it have corrections that hold, which the next step must not drop."""
    nets = [Net().bfloat16(), Net().bfloat16()]
    inside, after = (
        fastopt.AdamW(net.parameters(), lr=1e-5, master_weight_bits=32) for net in nets
    )

    def backward(k: int, net: torch.nn.Module) -> None:
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(k)).bfloat16()
        net(x).square().sum().backward()

    for k in range(3):
        with suppress(ValueError), inside.step_in_backward():
            backward(k, nets[0])
            raise ValueError("after backward()")
        backward(k, nets[1])
        for p, q in zip(params_of(inside), params_of(after), strict=True):
            if p.grad is not None:
                q.grad = None
            p.grad = None
        assert any(q.grad is not None for q in params_of(after))  # shares that were complete
        after.step()
        after.zero_grad()
        check(inside, after)


# ---- over processes ----
def accumulate(net: Any, k: int) -> None:
    """A backward pass whose gradients no process tells the others of."""
    if hasattr(net, "no_sync"):
        with net.no_sync():
            loss_of(net, k).backward()
    else:
        net.set_requires_gradient_sync(False)
        loss_of(net, k).backward()
        net.set_requires_gradient_sync(True)


def full(net: torch.nn.Module) -> list[Tensor]:
    found = [p.detach() for p in net.parameters()]
    return [t.full_tensor() if hasattr(t, "full_tensor") else t for t in found]


def over_processes() -> None:
    _backward.SHARE_BYTES = SHARE_BYTES
    mesh = mesh_of(dist.get_world_size())

    def sharded(net: Net) -> torch.nn.Module:
        for part in [*net.layers, net]:
            fully_shard(part, mesh=mesh)
        return net

    wrappers: dict[str, Callable[[Net], torch.nn.Module]] = {
        "ddp": lambda net: DistributedDataParallel(net, find_unused_parameters=True),
        "fsdp2": sharded,
        "fsdp1": lambda net: FullyShardedDataParallel(net, device_id=torch.device("cpu")),
    }
    for name, wrap in wrappers.items():
        late = name != "fsdp2"
        for optimizer in unlike():
            if not late and _core.waits_for_norms(optimizer.ours._rule):
                net = wrap(Net())
                refused = pytest.raises(RuntimeError, match="call step\\(\\) after backward")
                with refused, optimizer.ours(net.parameters()).step_in_backward():
                    raise AssertionError
                continue
            for own in ({}, {"track_stats": True, "ema_decay": 0.5}, GLOBAL):
                nets = [wrap(Net(twice=late)) for _ in range(2)]
                group = dist.group.WORLD if name == "fsdp1" else None
                inside, after = (
                    optimizer.ours(net.parameters(), norm_group=group, **own) for net in nets
                )
                for k in (dist.get_rank(), 10 + dist.get_rank()):
                    if own is GLOBAL and not late:
                        loss = loss_of(nets[0], k)
                        with inside.norm_in_backward():
                            loss.backward(retain_graph=True)
                        with inside.step_in_backward():
                            loss.backward()
                    else:
                        for net in nets:
                            accumulate(net, 20 + k)
                        with inside.step_in_backward(nets[0] if late else None):
                            loss_of(nets[0], k).backward()
                    assert all(p.grad is None for p in nets[0].parameters())
                    loss_of(nets[1], k).backward()
                    after.step()
                    after.zero_grad()
                    if "track_stats" in own:
                        assert inside.stats() == after.stats(), name
                    if own is GLOBAL:
                        torch.testing.assert_close(inside.grad_norm, after.grad_norm)
                for p, q in zip(full(nets[0]), full(nets[1]), strict=True):
                    if own is GLOBAL:
                        torch.testing.assert_close(p, q)
                    else:
                        assert torch.equal(p, q), (name, optimizer.name)
    net = DistributedDataParallel(Net(), find_unused_parameters=True)
    made = fastopt.AdamW(net.parameters())
    with (
        pytest.raises(RuntimeError, match=r"pass the model, step_in_backward\(model\)"),
        made.step_in_backward(),
    ):
        loss_of(net, 0).backward()


def test_over_processes() -> None:
    run(2, over_processes)
