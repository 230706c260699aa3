"""Groups and states as torchtitan and torchtune make them: implementation flags as keys of each
group, states that a hook has filled, a step that is to make them only, an optimizer a parameter.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from alike import BATCHES, CLASSES, assert_alike, assert_on_engine, loss_of, net, torchs

import fastopt

IMPLEMENTATIONS = {
    "fused": {"fused": True, "foreach": False},
    "foreach": {"fused": False, "foreach": True},
    "for-loop": {"fused": False, "foreach": False},
}


def groups_of(model: Any, **keys: Any) -> list[dict[str, Any]]:
    """Named parameters by a pattern, each group with all of its settings."""
    named = {
        "weight": {"weight_decay": 0.1},
        "bias": {"weight_decay": 0.0, "lr": 0.02, "initial_lr": 0.02, "lr_scale": 0.4},
    }
    return [
        {
            "params": [p for name, p in model.named_parameters() if kind in name],
            "param_names": [name for name, _ in model.named_parameters() if kind in name],
            "lr": 0.05,
            **keys,
            **own,
        }
        for kind, own in named.items()
    ]


def train(model: Any, optimizer: Any, batches: Any = BATCHES) -> None:
    for x, label in batches:
        optimizer.zero_grad()
        loss_of(model(x), label).backward()
        optimizer.step()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("cls", CLASSES)
def test_implementation_flags(cls: Any, implementation: str) -> None:
    """They arrive as keys of groups, where torch's constructors check nothing."""
    models = net(), net()
    for model, each in zip(models, (cls, torchs(cls)), strict=True):
        optimizer = each(groups_of(model, **IMPLEMENTATIONS[implementation]))
        train(model, optimizer)
        if each is cls:
            assert_on_engine(optimizer, cls.__name__)
            names = [name for group in optimizer.param_groups for name in group["param_names"]]
            assert names == ["0.weight", "2.weight", "0.bias", "2.bias"]
    assert_alike(*(model.parameters() for model in [*models, net()]))


def test_capturable() -> None:
    """The one flag that asks for another algorithm takes torch's step, and explain() says so."""
    optimizer = fastopt.AdamW(groups_of(net(), capturable=True))
    assert {bucket.path for bucket in fastopt.explain(optimizer).buckets} == {"torch"}


def fill(optimizer: Any, args: Any, kwargs: Any) -> None:
    """A hook's states in bfloat16, before the first step would make them."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state[p]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(p, dtype=torch.bfloat16)
                state["exp_avg_sq"] = torch.zeros_like(p, dtype=torch.bfloat16)


@pytest.mark.parametrize("cls", [fastopt.Adam, fastopt.AdamW])
def test_states_of_a_hook(cls: Any) -> None:
    models = net(), net()
    optimizers = [cls(groups_of(models[0], fused=True)), torchs(cls)(groups_of(models[1]))]
    assert isinstance(optimizers[0], torch.optim.Adam)
    optimizers[0].register_step_pre_hook(fill)
    for model, optimizer in zip(models, optimizers, strict=True):
        train(model, optimizer)
    for state in optimizers[0].state.values():
        assert state["step"] == len(BATCHES)
        assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    assert_on_engine(optimizers[0], cls.__name__)
    assert_alike(*(model.parameters() for model in [*models, net()]), tolerance=1e-2)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_that_makes_the_states(cls: Any) -> None:
    """With gradients and learning rates of 0, for a checkpoint to be loaded into them."""
    model = net()
    optimizer = cls(groups_of(model, fused=True))
    train(model, optimizer, BATCHES[:4])
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, BATCHES[4:])

    again = net()
    fresh = cls(groups_of(again, fused=True))
    before = copy.deepcopy(again.state_dict())
    rates = [group["lr"] for group in fresh.param_groups]
    for group in fresh.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    fresh.step(closure=None)
    assert all(torch.equal(p, before[name]) for name, p in again.state_dict().items())
    for group, rate in zip(fresh.param_groups, rates, strict=True):
        group["lr"] = rate
    assert fresh.state_dict()["state"].keys() == saved[1]["state"].keys()
    again.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    train(again, fresh, BATCHES[4:])
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_optimizer_a_parameter(cls: Any) -> None:
    """Each stepped as soon as its gradient is there, and cleared."""
    models = net(), net()
    train(models[0], cls(models[0].parameters(), lr=0.05))
    optimizers = {p: cls([p], lr=0.05) for p in models[1].parameters()}

    def step(p: torch.Tensor) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in models[1].parameters():
        p.register_post_accumulate_grad_hook(step)
    for x, label in BATCHES:
        loss_of(models[1](x), label).backward()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        assert torch.equal(p, q)
