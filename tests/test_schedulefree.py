"""The two modes of schedule-free optimizers: what the parameters hold, steps refused, checkpoints,
corrections of 16-bit parameters.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import (
    Optimizer,
    assert_same_bits,
    assert_same_state,
    discover,
    grads_for,
    parameter,
    params_of,
    run,
)

import fastopt
from fastopt import precision

pytestmark = pytest.mark.parity

UNDER_TEST = [o for o in discover() if issubclass(o.ours, fastopt.optim.schedulefree.Averaging)]
KINDS = ["ours", "theirs"]


def made(optimizer: Optimizer, kind: str = "ours", dtype: Any = torch.float32, **more: Any) -> Any:
    params = [parameter((5, 7), dtype, seed=0), parameter((70,), dtype, seed=1)]
    built = getattr(optimizer, kind)(params, **{**optimizer.strongest, "lr": 0.1, **more})
    run(built, 4)
    return built


def pull(built: Any) -> float:
    group = built.param_groups[0]
    return group["momentum"] if "momentum" in group else group["betas"][0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_the_average(optimizer: Optimizer, kind: str, dtype: torch.dtype) -> None:
    """x, kept beside a training, is what eval() makes of the parameters; train() undoes it."""
    built = made(optimizer, kind, dtype)
    fresh = getattr(optimizer, kind)(
        [parameter((5, 7), dtype, seed=0), parameter((70,), dtype, seed=1)],
        **{**optimizer.strongest, "lr": 0.1},
    )
    averages, total, largest = [p.detach().clone() for p in params_of(fresh)], 0.0, 0.0
    group = fresh.param_groups[0]
    for t in range(1, 5):
        run(fresh, 1, seed=t)
        largest = max(largest, group["lr"] * min(1, t / group["warmup_steps"]))
        weight = t ** group["r"] * largest ** group["weight_lr_power"]
        total += weight
        for x, p in zip(averages, params_of(fresh), strict=True):
            x.lerp_(fresh.state[p]["z"], weight / total)
    training = [p.detach().clone() for p in params_of(fresh)]
    fresh.eval()
    assert not group["train_mode"]
    close = {"rtol": 1e-4, "atol": 1e-5}
    for p, x in zip(params_of(fresh), averages, strict=True):
        torch.testing.assert_close(p.detach(), x, **close)
    evaluated = [p.detach().clone() for p in params_of(fresh)]
    fresh.eval()  # a second time changes nothing
    for p, x in zip(params_of(fresh), evaluated, strict=True):
        assert_same_bits(p, x)
    fresh.train()
    fresh.train()
    for p, y in zip(params_of(fresh), training, strict=True):
        torch.testing.assert_close(p.detach(), y, **close)
    run(fresh, 1, seed=9)
    run(built, 1, seed=9)
    for p, q in zip(params_of(fresh), params_of(built), strict=True):
        torch.testing.assert_close(p, q, **close)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hooked", [False, True])
def test_a_step_in_evaluation_mode(optimizer: Optimizer, kind: str, hooked: bool) -> None:
    built = made(optimizer, kind)
    built.eval()
    before, calls = copy.deepcopy(built), []
    if hooked:
        built.register_step_post_hook(lambda *_: calls.append(1))
    grads_for(params_of(built), seed=3)
    with pytest.raises(RuntimeError, match=r"call train\(\) before the next step"):
        built.step(lambda: calls.append(1))
    if kind == "ours":
        with pytest.raises(RuntimeError, match=r"step_in_backward\(\)"), built.step_in_backward():
            pass
    assert_same_state(built, before)
    assert not calls


def test_checkpoints_in_evaluation_mode(optimizer: Optimizer) -> None:
    """The mode comes with the param groups, the average with the model."""
    built, other = made(optimizer), made(optimizer)
    built.eval()
    other.load_state_dict(copy.deepcopy(built.state_dict()))
    with torch.no_grad():
        for p, q in zip(params_of(built), params_of(other), strict=True):
            q.copy_(p)
    assert not any(group["train_mode"] for group in other.param_groups)
    for each in (built, other):
        each.train()
        run(each, 2, seed=5)
    assert_same_state(built, other)


def test_before_the_first_step(optimizer: Optimizer) -> None:
    p = parameter((9,), torch.float32, seed=0)
    before = p.detach().clone()
    built = optimizer.ours([p])
    built.eval()
    built.train()
    assert_same_bits(p, before)
    assert not built.state


def test_inside_swapped_averages(optimizer: Optimizer) -> None:
    built = made(optimizer, ema_decay=0.9)
    with built.swap_ema(), pytest.raises(RuntimeError, match=r"eval\(\) inside swap_ema\(\)"):
        built.eval()


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_corrections(optimizer: Optimizer, dtype: torch.dtype, bits: int) -> None:
    """A parameter is interpolated with its correction, which the next step goes on with."""
    built = made(optimizer, dtype=dtype, state_bits=32, master_weight_bits=bits)
    training = [precision.weight(p, built.state[p]) for p in params_of(built)]
    built.eval()
    for p, y in zip(params_of(built), training, strict=True):
        expected = y.lerp(built.state[p]["z"], 1 - 1 / pull(built))
        close = 2**-14 if bits == 24 else 1e-6
        got = precision.weight(p, built.state[p])
        torch.testing.assert_close(got, expected, rtol=close, atol=close)
    built.train()
    for p, y in zip(params_of(built), training, strict=True):
        got = precision.weight(p, built.state[p])
        torch.testing.assert_close(got, y, rtol=2 * close, atol=2 * close)
    lows = [built.state[p]["master_low"].clone() for p in params_of(built)]
    for group in built.param_groups:  # a step that changes nothing
        group["lr"], group["r"], group["weight_decay"] = 0.0, -200.0, 0.0
    run(built, 1)
    for p, low in zip(params_of(built), lows, strict=True):
        assert low.any()
        assert (built.state[p]["master_low"].int() - low.int()).abs().max() <= 1


def test_what_is_refused(optimizer: Optimizer) -> None:
    p = parameter((3,), torch.float32, seed=0)
    wrong = {"momentum": 0.0} if optimizer.has("momentum") else {"betas": (0.0, 0.9)}
    with pytest.raises(ValueError, match=r"Invalid (momentum|beta parameter at index 0): 0\.0"):
        optimizer.ours([p], **wrong)
    with pytest.raises(ValueError, match="Invalid warmup_steps value: -1"):
        optimizer.ours([p], warmup_steps=-1)
