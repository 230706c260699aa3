"""GradScaler and step counts on the device, in Triton's interpreter: no host reads a tensor.

See test_triton_interpreted.py for when it runs.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from support import (
    UNITS,
    assert_same_bits,
    discover,
    grads_for,
    launches,
    parameter,
    params_of,
    run,
    values,
)
from torch import Tensor

import fastopt
from fastopt import _core
from fastopt.formats import key, mix64

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from fastopt.backends.triton import bucket, kernel, rules, tiles
from fastopt.backends.triton.formats import WORDS

pytestmark = pytest.mark.parity

STRONGEST: list[tuple[Any, dict[str, Any]]] = [
    (fastopt.SGD, {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1, "maximize": True}),
    (fastopt.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (fastopt.RMSprop, {"momentum": 0.9, "centered": True, "weight_decay": 0.1}),
]


@pytest.mark.parametrize("unscaled", [False, True])
@pytest.mark.parametrize(("cls", "hyper"), STRONGEST, ids=str)
def test_scaler_stays_on_the_device(
    cls: Any, hyper: dict[str, Any], unscaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps skipped by found_inf, the first one among them; nobody asks a tensor for its value."""
    skips = [True, False, True, False]

    def make() -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = cls([parameter((150,), torch.float32, seed=0)], **hyper)
        return made

    def step(optimizer: torch.optim.Optimizer) -> None:
        (p,) = params_of(optimizer)
        for k, skip in enumerate(skips):
            p.grad = values(p.shape, p.dtype, seed=k) * 8
            optimizer.found_inf = torch.full((1,), float(skip))  # type: ignore[attr-defined]
            optimizer.grad_scale = None if unscaled else torch.tensor(8.0)  # type: ignore[attr-defined]
            before = p.detach().clone()
            with monkeypatch.context() as patched:
                if os.environ["FASTOPT_BACKEND"] == "triton":
                    patched.setattr(Tensor, "item", None)
                optimizer.step()
            assert torch.equal(p, before) == skip

    made = []
    for backend in ("triton", "auto"):
        monkeypatch.setenv("FASTOPT_BACKEND", backend)
        made.append(make())
        step(made[-1])
    for a, b in zip(params_of(made[0]), params_of(made[1]), strict=True):
        # The device counts steps and computes their scalars itself: see rules.power.
        close = {"rtol": max(1e-6, UNITS * 2.0**-23), "atol": max(1e-7, UNITS * 2.0**-23)}
        torch.testing.assert_close(a, b, **close)
        for name, state in made[0].state[a].items():
            torch.testing.assert_close(state, made[1].state[b][name], **close)


@pytest.mark.parametrize("cls", [fastopt.AdamW, fastopt.RMSprop])
def test_capturable_counts_on_the_device(cls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(backend: str, **more: Any) -> tuple[Tensor, torch.optim.Optimizer]:
        monkeypatch.setenv("FASTOPT_BACKEND", backend)
        made = cls([parameter((150,), torch.float32, seed=0)], **more)
        for k in range(3):
            grads_for(params_of(made), seed=k)
            if k == 1:
                made.zero_grad()
            made.step()
        return params_of(made)[0], made

    launched = launches(monkeypatch)
    p, ours = run("triton", capturable=True)
    q, engine = run("auto")
    assert launched == ["count_steps", "multi_tensor"] * 3
    assert ours.state[p]["step"].item() == engine.state[q]["step"].item() == 2
    torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", _core.rules())
def test_scalars_on_the_device(rule: str) -> None:
    """In double, to 1e-12 of the host's; the learning rate a tensor, counts of both types."""
    row = next(o for o in discover() if o.ours._rule == rule)  # type: ignore[attr-defined]
    group = row.ours([torch.ones(1)], **row.strongest).param_groups[0]
    own = {"weight_decay": 0.1, "decoupled_weight_decay": True, "eps_in_sqrt": True}
    known = _core.hyper(rule)
    group |= {key: value for key, value in own.items() if key in known} | {"maximize": True}
    steps = [torch.tensor(0.0), torch.tensor(6.0), torch.tensor(99999.0, dtype=torch.float64)]
    steps.append(torch.tensor(3.0))
    count = len(_core.carried(rule))
    carried = [[step, *torch.full((count,), 0.75, dtype=torch.float64)][:count] for step in steps]
    before = [[number.item() for number in of] for of in carried]
    lr = torch.tensor(0.25, dtype=torch.float64)
    at = [[bucket.number_at(number) for number in of] for of in carried]
    hyper = [[-1.0, *flat(rule, group)]]
    hyper_at = [[0] * len(hyper[0])]
    hyper_at[0][1] = lr.data_ptr() | 1
    names = _core.scalar_names(rule)
    out = torch.zeros(4, 1 + len(names), dtype=torch.float64)
    fresh = torch.tensor([1, 0, 0, 1], dtype=torch.int32)
    keys = torch.zeros(4, WORDS.value, dtype=torch.int64)
    kernel.count_steps[(1,)](
        4,
        torch.tensor([16, 16, 16, 0]),
        torch.tensor(at),
        torch.zeros(4, dtype=torch.int32),
        fresh,
        torch.tensor(hyper, dtype=torch.float64),
        torch.tensor(hyper_at),
        out,
        torch.zeros(()),
        None,
        None,
        torch.arange(4),
        torch.from_numpy(np.array([mix64(11)], np.uint64).view(np.int64)),
        keys,
        SCALARS_OF=rules.RULES[rule].scalars,
        HYPER=len(hyper[0]) - 1,
        CARRIED=count,
        SCALER=0,
        BLOCK=tiles.COUNT_BLOCK,
    )
    assert carried[3] == before[3]
    assert fresh.tolist() == [0, 0, 0, 1]
    for i in range(3):
        expected, left = _core.scalars(rule, {**group, "lr": 0.25}, before[i], first=i == 0)
        np.testing.assert_allclose(out[i], [-1.0, *expected.values()], rtol=1e-12)
        np.testing.assert_allclose([number.item() for number in carried[i]], left, rtol=1e-12)
        assert left[:1] == [step + 1 for step in before[i][:1]]
        if left:  # a rule that counts nothing is given a step to count where it is compact
            noise = [key(11, int(left[0]), i, word) for word in range(WORDS.value)]
            assert keys[i].numpy().view(np.uint64).tolist() == noise


def flat(rule: str, group: dict[str, Any]) -> list[float]:
    found = [group.get(key) or 0.0 for key in _core.hyper(rule)]  # 0 where it is not set
    return [float(x) for v in found for x in (v if isinstance(v, tuple) else (v,))]


def test_parameters_that_come_to_share_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on they are launched one after the other: each unscales it in place."""
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    made = fastopt.SGD([parameter((40,), torch.float32, seed=i) for i in range(3)], lr=0.1)
    made.grad_scale, made.found_inf = torch.tensor(2.0), torch.tensor(0.0)  # type: ignore[attr-defined]
    launched = launches(monkeypatch)
    run(made, 2)
    assert launched.count("multi_tensor") == 2
    params = params_of(made)
    before = [p.detach().clone() for p in params]
    grads_for(params, seed=5)
    params[2].grad = shared = params[0].grad
    expected = [g / d for g, d in ((shared, 2), (params[1].grad, 2), (shared, 4))]
    launched.clear()
    made.step()
    assert launched.count("multi_tensor") == 2
    for p, q, g in zip(params, before, expected, strict=True):
        torch.testing.assert_close(p.detach(), q - 0.1 * g)
    assert_same_bits(shared, expected[2])
