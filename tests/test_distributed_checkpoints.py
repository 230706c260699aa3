"""torch.distributed.checkpoint: asking for states changes nothing; between torch's classes and
ours; saved sharded over four processes, loaded over two.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from processes import mesh_of, run
from support import ON_TRITON, Optimizer, unlike
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

import fastopt

pytestmark = [
    pytest.mark.skipif(ON_TRITON, reason="states are made and kept by the host alike"),
    # Saving in one process says that it is one.
    pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning"),
    pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning"),
]

OWN: list[dict[str, Any]] = [
    {},
    {"ema_decay": 0.5, "max_grad_norm": 10.0},
    {"state_bits": 8, "min_8bit_size": 64, "ema_decay": 0.5},
    {"state_bits": 16},
]
FLAT = pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])


class Net(torch.nn.Module):
    """Uneven shards, an empty one, a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = torch.nn.Linear(64, 130)
        self.last = torch.nn.Linear(130, 3)
        self.last.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


def train(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    """One process has all of the loss, so that no sum over processes rounds."""
    share = 1.0
    if dist.is_initialized():
        share = 0.0 if dist.get_rank() else dist.get_world_size()
    for k in steps:
        optimizer.zero_grad()
        x = torch.randn(8, 64, generator=torch.Generator().manual_seed(k))
        (net(x).square().mean() * share).backward()
        optimizer.step()


def whole(t: Any) -> Any:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def contents(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Any]]:
    for name, p in net.named_parameters():
        yield name, whole(p.detach())
        for key, t in optimizer.state.get(p, {}).items() if p.requires_grad else ():
            yield f"{key} of {name}", whole(t)


def assert_equal(ours: Any, theirs: Any) -> None:
    ours, theirs = dict(ours), dict(theirs)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("own", OWN, ids=str)
def test_asking_for_states_changes_nothing(optimizer: Optimizer, own: dict[str, Any]) -> None:
    hyper = {**optimizer.strongest, **own}
    asked, left = Net(), Net()
    made = [optimizer.ours(net.parameters(), **hyper) for net in (asked, left)]
    found = get_optimizer_state_dict(asked, made[0])
    assert {name.split(".")[0] for name in found["state"]} == {"first", "last"}
    frozen = any(p is asked.last.bias for p in made[0].state)  # torch's Adagrad makes all at once
    assert ("last.bias" in found["state"]) == frozen
    for name, state in found["state"].items():
        assert ("ema" in state) == ("ema_decay" in own and name != "last.bias")
    assert made[0].skipped_steps == 0
    for net, each in zip((asked, left), made, strict=True):
        train(net, each, range(3))
    assert_equal(contents(asked, made[0]), contents(left, made[1]))


def test_a_step_that_is_a_step(optimizer: Optimizer) -> None:
    """A learning rate of 0 alone does not make it a question."""
    for closure in (None, lambda: 0.0):
        net = Net()
        made = optimizer.ours(net.parameters(), lr=0.0)
        for p in net.parameters():
            p.grad = torch.ones_like(p) if closure is None else torch.zeros_like(p)
        made.step(closure=closure)
        counts = [state["step"] for state in made.state.values() if "step" in state]
        assert all(count == 1 for count in counts)


def test_a_refused_first_step_keeps_what_was_asked_for() -> None:
    net = Net()
    made = fastopt.AdamW(net.parameters(), skip_nonfinite=True)
    get_optimizer_state_dict(net, made)
    before = dict(contents(net, made))
    for p in net.parameters():
        p.grad = torch.full_like(p, torch.nan)
    made.step()
    assert made.skipped_steps == 1
    assert_equal(before.items(), contents(net, made))
    net.first.weight.grad = torch.ones(130, 64).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        made.step()
    assert_equal(before.items(), contents(net, made))


@FLAT
def test_between_torch_and_ours(optimizer: Optimizer, tmp_path: Path, flat: bool) -> None:
    if optimizer.theirs is None or not optimizer.theirs.__module__.startswith("torch."):
        pytest.skip("torch has no such class")
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    hyper = {
        k: v
        for k, v in optimizer.strongest.items()
        if k in optimizer.theirs([torch.empty(0)]).defaults
    }
    for k, (saves, loads) in enumerate(
        [(optimizer.theirs, optimizer.ours), (optimizer.ours, optimizer.theirs)]
    ):
        saved, loaded = Net(), Net()
        one, other = (
            cls(net.parameters(), **hyper) for cls, net in ((saves, saved), (loads, loaded))
        )
        train(saved, one, range(3))
        dcp.save(
            {"optim": get_optimizer_state_dict(saved, one, options=options)},
            checkpoint_id=tmp_path / str(k),
        )
        loaded.load_state_dict(saved.state_dict())
        found = {"optim": get_optimizer_state_dict(loaded, other, options=options)}
        dcp.load(found, checkpoint_id=tmp_path / str(k))
        set_optimizer_state_dict(loaded, other, found["optim"], options=options)
        assert_equal(contents(saved, one), contents(loaded, other))


def test_what_a_checkpoint_lacks_begins_anew(tmp_path: Path) -> None:
    """Torch's checkpoint in an optimizer with an average and codes: loaded plainly, then asked."""
    theirs, late, early = Net(), Net(), Net()
    saved = torch.optim.AdamW(theirs.parameters(), lr=0.1)
    train(theirs, saved, range(3))
    dcp.save({"optim": get_optimizer_state_dict(theirs, saved)}, checkpoint_id=tmp_path)
    own = {"ema_decay": 0.5}
    partly = DefaultLoadPlanner(allow_partial_load=True)
    for net, planner, first in ((late, None, {}), (early, partly, own)):
        made = fastopt.AdamW(net.parameters(), lr=0.1, **first)
        found = {"optim": get_optimizer_state_dict(net, made)}
        dcp.load(found, checkpoint_id=tmp_path, planner=planner)
        set_optimizer_state_dict(net, made, found["optim"])
        net.load_state_dict(theirs.state_dict())
        made.param_groups[0].update(own)
        train(net, made, range(3, 4))
        averages = [*made.ema_parameters()]
        for average, p in zip(averages, net.parameters(), strict=True):
            assert torch.equal(average, p.detach())
    assert_equal(late.state_dict().items(), early.state_dict().items())


def test_codes_are_not_taken_for_numbers(tmp_path: Path) -> None:
    """DCP converts dtypes: a loader that knows of no codes must not find any."""
    net = Net()
    made = fastopt.AdamW(net.parameters(), state_bits=8, min_8bit_size=64)
    train(net, made, range(1))
    dcp.save({"optim": get_optimizer_state_dict(net, made)}, checkpoint_id=tmp_path)
    for cls in (fastopt.AdamW, torch.optim.AdamW):
        found = {"optim": get_optimizer_state_dict(net, cls(net.parameters()))}
        net.zero_grad()
        found = {"optim": get_optimizer_state_dict(net, cls(net.parameters()))}
        with pytest.raises(BaseException, match=r"Missing key .*exp_avg"):
            dcp.load(found, checkpoint_id=tmp_path)


# ---- over processes ----
def shard(size: int) -> torch.nn.Module:
    net = Net()
    mesh = mesh_of(size)
    for part in (net.first, net):
        fully_shard(part, mesh=mesh)
    return net


def saving(folder: str, size: int) -> None:
    warnings.simplefilter("ignore")
    for optimizer in unlike():
        for k, own in enumerate(OWN):
            net = shard(size)
            made = optimizer.ours(net.parameters(), **{**optimizer.strongest, "lr": 0.05}, **own)
            train(net, made, range(3))
            model, optim = get_state_dict(net, made)
            name = Path(folder) / f"{optimizer.ours.__name__}-{k}"
            dcp.save({"model": model, "optim": optim}, checkpoint_id=name)
            options = StateDictOptions(full_state_dict=True)
            # A copy: what is not sharded goes on being the optimizer's own.
            full = copy.deepcopy(get_optimizer_state_dict(net, made, options=options))
            train(net, made, range(3, 5))
            expected = dict(contents(net, made))
            if dist.get_rank() == 0:
                torch.save((full, expected), f"{name}.pt")


def loading(folder: str, size: int) -> None:
    warnings.simplefilter("ignore")
    for optimizer in unlike():
        for k, own in enumerate(OWN):
            name = Path(folder) / f"{optimizer.ours.__name__}-{k}"
            full, expected = torch.load(f"{name}.pt", weights_only=False)
            for sharded in (True, False):
                net = shard(size)
                made = optimizer.ours(
                    net.parameters(), **{**optimizer.strongest, "lr": 0.01}, **own
                )
                model, optim = get_state_dict(net, made)
                dcp.load({"model": model, "optim": optim}, checkpoint_id=name)
                if sharded:
                    set_state_dict(net, made, model_state_dict=model, optim_state_dict=optim)
                else:
                    options = StateDictOptions(full_state_dict=True)
                    set_optimizer_state_dict(net, made, full, options=options)
                train(net, made, range(3, 5))
                assert made.param_groups[0]["lr"] == 0.05
                assert_equal(contents(net, made), expected.items())


def test_saved_over_four_loaded_over_two(tmp_path: Path) -> None:
    run(4, saving, str(tmp_path), 4)
    run(2, loading, str(tmp_path), 2)
