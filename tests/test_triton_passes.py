"""The passes around the update on Triton, in its interpreter: no host reads a tensor, the norm's
kernels, launches that mix passes, plans that follow one another.

What they compute: test_passes.py and test_tail.py. See test_triton_interpreted.py for when it runs.
"""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from support import assert_same_bits, grads_for, launches, parameter, params_of, run, values
from test_passes import ALL, strongest
from torch import Tensor

import fastopt
from fastopt import _core
from fastopt.rules import passes as reference

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from fastopt.backends.triton import norm

pytestmark = pytest.mark.parity

READS = ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__")


def step_unread(optimizer: torch.optim.Optimizer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A step, and its norm, during which nobody may ask a tensor for its value."""
    from fastopt.backends.triton import calls

    launched = calls.run

    def run_kernels(found: Any) -> None:
        with monkeypatch.context() as kernels:  # the interpreter itself reads memory
            for name, method in kept.items():
                kernels.setattr(Tensor, name, method)
            launched(found)

    kept = {name: getattr(Tensor, name) for name in READS}
    with monkeypatch.context() as patched:
        patched.setattr(calls, "run", run_kernels)
        for name in READS:
            patched.setattr(Tensor, name, None)
        optimizer.step()
        return optimizer.grad_norm  # type: ignore[attr-defined]


@pytest.mark.parametrize("scaled", [False, True])
def test_nobody_waits(optimizer: Any, scaled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Skipped steps, the first among them, under GradScaler and without: no host reads a tensor."""
    made = optimizer.ours([parameter((40,), torch.float32, seed=i) for i in range(2)], **ALL)
    run(made, 1)  # plans, whose uploads are NumPy's
    for k, bad in enumerate((True, False, True)):
        grads_for(params_of(made), seed=k)
        if scaled:
            made.grad_scale = torch.tensor(4.0)
            made.found_inf = torch.tensor(float(bad))
        elif bad:
            params_of(made)[1].grad[7] = math.nan
        norm_of = reference.total_norm(
            [p.grad.numpy() for p in params_of(made)], 4 if scaled else 1
        )
        before = [p.detach().clone() for p in params_of(made)]
        found = step_unread(made, monkeypatch)
        assert_same_bits(found, torch.tensor(norm_of, dtype=torch.float32))
        for p, q in zip(params_of(made), before, strict=True):
            assert torch.equal(p, q) == bad
            assert (p.grad == 0).all()
    assert made.skipped_steps == 2


@pytest.mark.parametrize("count", [0, 1, 1024, 8 * 1024 + 5, 20_000])
def test_many_block_sums(count: int) -> None:
    """More rows of sums than are under way at once, and every place in them."""
    sums = values((count,), torch.float64, seed=0).abs()
    places = np.zeros(1024)
    for row in reference.blocks(sums.numpy()).T:
        places = places + row
    expected = np.sqrt(reference.halve(places)) / 8
    found = torch.zeros((), dtype=torch.float64)
    limits = [3.0, -1.0, math.inf, 1e9]
    factors = torch.zeros(4, dtype=torch.float64)
    skip, skipped = torch.zeros(()), torch.tensor(5)
    norm.finish_norm[(1,)](
        sums,
        torch.tensor([0] * (count - 1) + [1] * (count > 0), dtype=torch.int32),
        count,
        torch.tensor([[limit, 0, 0, 0] for limit in limits], dtype=torch.float64),
        factors,
        len(limits),
        found,
        skip,
        skipped,
        torch.zeros(()),
        torch.tensor(8.0),
        SCALER=2,
        SKIPS_NONFINITE=True,
    )
    assert_same_bits(found, np.float64(expected))
    factor = reference.clip_factor(float(expected), 3.0)
    assert factors.tolist() == [factor, 1.0, 1.0, 1.0]
    assert (skip.item(), skipped.item()) == (float(count > 0), 5 + (count > 0))


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_norm_of_every_access(dtype: torch.dtype, shift: int) -> None:
    """Whole programs with vectors, tails and misaligned gradients with single elements."""
    sizes = [1, 1023, 1024, 1025, 4096, 9001]
    params = [parameter((n,), dtype, seed=i) for i, n in enumerate(sizes)]
    made = fastopt.SGD(params, max_grad_norm=math.inf)
    for i, p in enumerate(params):
        memory = values((p.numel() + 1,), dtype, seed=50 + i)
        p.grad = memory[shift : shift + p.numel()]
    made.step()
    numbers = [p.grad.double().numpy() for p in params]
    assert_same_bits(made._record.last.grad_norm, np.float64(reference.total_norm(numbers)))


def test_gradients_that_come_and_go() -> None:
    """The sums keep the order of the parameters, over dtypes and whatever has a gradient."""
    params = [
        parameter((1500 + 700 * i,), dtype, seed=i)
        for i, dtype in enumerate([torch.float32, torch.float64, torch.float32, torch.bfloat16])
    ]
    made = fastopt.SGD(params, max_grad_norm=math.inf)
    for k, absent in enumerate([(), (0,), (1, 3), (), (0, 1, 2, 3)]):
        grads_for(params, seed=k)
        for i in absent:
            params[i].grad = None
        made.step()
        numbers = [p.grad.double().numpy() for p in params if p.grad is not None]
        assert_same_bits(made.grad_norm, np.float64(reference.total_norm(numbers)))


def test_groups_that_mix_passes(optimizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch a group by what it asks for, one norm over all; everything as on the CPU engine."""
    groups: list[dict[str, Any]] = [{}, {"ema_decay": 0.5, "l1": 0.1}, {"track_stats": True}, ALL]
    launched = launches(monkeypatch)
    made = []
    for backend in ("triton", "auto"):
        monkeypatch.setenv("FASTOPT_BACKEND", backend)
        own = [
            {"params": [parameter((60,), torch.float32, seed=i)], **off_skipping(group)}
            for i, group in enumerate(groups)
        ]
        made.append(optimizer.ours(own, **strongest(optimizer)))
        run(made[-1], 3)
    ours, engine = made
    measures = _core.waits_for_norms(ours._rule)
    assert launched.count("multi_tensor") == 4 * 3 * (1 + measures)
    assert launched.count("finish_norm") == 3
    assert_same_bits(ours.grad_norm, engine.grad_norm)
    for p, q in zip(params_of(ours), params_of(engine), strict=True):
        assert_same_bits(p, q)
        assert ours.state[p].keys() == engine.state[q].keys()
        for name, state in ours.state[p].items():
            assert_same_bits(state, engine.state[q][name], name)
    assert ours.stats().keys() == engine.stats().keys() == {"2.0", "3.0"}
    for a, b in zip(ours.stats().values(), engine.stats().values(), strict=True):
        assert list(a.values()) == pytest.approx(list(b.values()))


def off_skipping(group: dict[str, Any]) -> dict[str, Any]:
    """Without what makes the device count steps, whose powers are its own: see rules.power."""
    return {k: v for k, v in group.items() if k != "skip_nonfinite"}


def test_an_average_that_has_not_begun_outlives_its_plan() -> None:
    """Its first step skipped, it begins in a later plan, with the first parameter updated."""
    p = parameter((30,), torch.float32, seed=0)
    made = fastopt.SGD([p], lr=0.1, ema_decay=0.9, skip_nonfinite=True)
    p.grad = torch.full_like(p, math.nan)
    made.step()
    assert_same_bits(next(made.ema_parameters()), p)
    made.param_groups[0]["skip_nonfinite"] = False
    made.param_groups[0]["l1"] = 0.1  # another plan
    run(made, 1)
    assert_same_bits(made.state[p]["ema"], p)
    run(made, 1)
    assert not torch.equal(made.state[p]["ema"], p)
    assert made.skipped_steps == 1


def test_numbers_change_without_another_plan() -> None:
    made = fastopt.AdamW([parameter((30,), torch.float32, seed=0)], max_grad_norm=1.0, l1=0.1)
    run(made, 1)
    plan = made._record.plan
    made.param_groups[0].update(max_grad_norm=0.5, l1=0.2)
    run(made, 1)
    assert made._record.plan is plan
    made.param_groups[0]["l1"] = 0.0
    run(made, 1)
    assert made._record.plan is not plan
