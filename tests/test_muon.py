"""Muon: against torch's class over its options, layouts and devices' products; what is refused; its
passes, checkpoints, copies; shared memory.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support import assert_same_state, params_of, run, values
from whole import SHAPES, make, pair, refuses

import fastopt
from fastopt import rules
from fastopt.backends import batched, muon

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr": {"lr": 0.02},
    "lr tensor": {"lr": torch.tensor(0.02)},
    "weight_decay": {"weight_decay": 0.3, "lr": 0.1},
    "momentum": {"momentum": 0.6, "nesterov": False},
    "no momentum": {"momentum": 0.0},
    "steps": {"ns_steps": 3, "ns_coefficients": (2.0, -1.5, 0.5)},
    "none": {"ns_steps": 0},
    "eps": {"eps": 0.5},
    "original": {"adjust_lr_fn": "original"},
    "match": {"adjust_lr_fn": "match_rms_adamw"},
}
# bfloat16 has 8 bits: products summed in another order round apart now and then, which the
# iteration, that enlarges small singular values, carries on. In units of the largest update.
TOLERANCE = 0.05


def assert_close(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer, lr: float) -> None:
    """Momentum to rounding; parameters by what the products may differ in, times the rate."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        eps = torch.finfo(p.dtype).eps
        torch.testing.assert_close(p, q, rtol=4 * eps, atol=TOLERANCE * lr)
        mine, other = ours.state.get(p, {}), theirs.state.get(q, {})
        assert mine.keys() == other.keys()
        for name, t in mine.items():
            torch.testing.assert_close(t, other[name], rtol=4 * eps, atol=4 * eps)


@pytest.fixture(params=[True, False], ids=["bfloat16", "float32"])
def products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """The type that products take, whatever this processor has."""
    monkeypatch.setattr(muon, "has_bfloat16_products", lambda: request.param)
    return bool(request.param)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps(options: dict[str, Any]) -> None:
    ours, theirs = pair("Muon", **options)
    for k in range(5):
        for optimizer in (ours, theirs):
            run(optimizer, 1, seed=k)
        rate = float(options.get("lr", 1e-3)) * (4 if "adjust_lr_fn" in options else 3)
        assert_close(ours, theirs, rate * (k + 1))


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    ours, theirs = pair("Muon", dtype, lr=0.02)
    run(ours, 3)
    run(theirs, 3)
    assert_close(ours, theirs, 0.2)


def test_momentum_of_16_bits_stays() -> None:
    """Without nesterov torch divides a bfloat16 momentum by its norm, in place; here it stays."""
    ours = make(fastopt.Muon, torch.bfloat16, nesterov=False, momentum=0.5)
    run(ours, 1)
    p = params_of(ours)[-1]
    assert p.grad is not None
    expected = torch.zeros_like(p).lerp_(p.grad, 0.5)
    assert torch.equal(ours.state[p]["momentum_buffer"], expected)


@pytest.mark.parametrize("shape", [(40, 40), (24, 60), (60, 24)], ids=str)
def test_float64(shape: tuple[int, int]) -> None:
    """Near the same formulas in float64: the iteration in 8 bits has an error of its own."""
    param = torch.nn.Parameter(values(shape, torch.float32, 1))
    ours = fastopt.Muon([param], lr=0.1)
    p, states = param.detach().double().numpy(), {}
    for k in range(3):
        run(ours, 1, seed=k)
        assert param.grad is not None
        before = p
        p, states = rules.muon(p, param.grad.double().numpy(), states, lr=0.1)
        update = np.abs(p - before).max()
        assert np.abs(param.detach().double().numpy() - p).max() < 0.1 * (k + 1) * update
    m = ours.state[param]["momentum_buffer"].double().numpy()
    np.testing.assert_allclose(m, states["momentum_buffer"], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("products")
def test_layouts() -> None:
    """Transposed, strided and expanded tensors are updated as their contiguous copies."""

    def laid(x: torch.Tensor, how: str) -> torch.Tensor:
        if how == "transposed":
            return x.t().contiguous().t()
        room = torch.zeros(2 * x.size(0), 2 * x.size(1))
        return room[::2, 1::2].copy_(x)

    for how in ("transposed", "strided"):
        made = []
        for of in (lambda x: x, lambda x, how=how: laid(x, how)):
            params = [torch.nn.Parameter(of(values((6, 9), torch.float32, i))) for i in range(3)]
            optimizer = fastopt.Muon(params, lr=0.1)
            for k in range(3):
                for i, p in enumerate(params):
                    p.grad = of(values((6, 9), torch.float32, 10 * k + i))
                optimizer.step()
            made.append([p.detach().contiguous() for p in params])
        for a, b in zip(*made, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=TOLERANCE * 0.1)


def test_batches_change_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many go together; and memory stays bounded by it."""
    made = []
    for numbers in (1, 100, 1 << 20):
        monkeypatch.setattr(batched, "CHUNK", numbers)
        made.append(make(fastopt.Muon, lr=0.1))
        run(made[-1], 3)
    for other in made[1:]:
        assert_close(made[0], other, 0.5)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(batched, "CHUNK", 10)
    assert [len(c) for c in batched.chunks([*range(5)], 8, torch.device("cpu"))] == [2, 2, 1]
    assert [len(c) for c in batched.chunks([*range(2)], 99, torch.device("cpu"))] == [1, 1]


def test_same_bits_again() -> None:
    a, b = make(fastopt.Muon), make(fastopt.Muon)
    run(a, 3)
    run(b, 3)
    assert_same_state(a, b)


def test_shared_memory() -> None:
    """Parameters that overlap are updated one after the other, as torch does it."""
    made = []
    for cls in (fastopt.Muon, torch.optim.Muon):
        memory = values((8, 6), torch.float32, 3)
        params = [memory[:6], memory[2:], memory[1:7]]
        optimizer = cls(params, lr=0.1)
        run(optimizer, 3)
        made.append(memory)
    torch.testing.assert_close(*made, rtol=1e-5, atol=3 * 0.1 * TOLERANCE)


def test_param_groups() -> None:
    made = []
    for cls in (fastopt.Muon, torch.optim.Muon):
        p = [torch.nn.Parameter(values((6, 9), torch.float32, i)) for i in range(4)]
        optimizer = cls([{"params": p[:1], "lr": 0.1}, {"params": p[1:3], "ns_steps": 3}])
        run(optimizer, 2)
        optimizer.add_param_group({"params": p[3:], "lr": 0.5})
        optimizer.param_groups[0]["lr"] = 0.3
        run(optimizer, 2)
        made.append(optimizer)
    assert_close(*made, 1.0)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_refused_step_changes_nothing(steps: int) -> None:
    optimizer = make(fastopt.Muon)
    run(optimizer, steps)
    params = params_of(optimizer)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.param_groups[0]["ns_steps"] = 100
    refuses(optimizer, "Number of steps must be less than 100", ValueError)
    optimizer.param_groups[0]["ns_steps"] = 5
    optimizer.param_groups[0]["ns_coefficients"] = (1.0, 2.0)
    refuses(optimizer, "exactly 3 values", ValueError)
    optimizer.param_groups[0]["ns_coefficients"] = (1.0, 2.0, 3.0)
    params[-1].grad = torch.ones_like(params[-1]).to_sparse()
    refuses(optimizer, "^Muon does not support sparse gradients$", RuntimeError)
    params[-1].grad = torch.ones_like(params[-1])
    last = params[-1]
    for wrong in (torch.ones(3, 3), torch.ones_like(last).double(), 3.0):
        kept = optimizer.state.get(last)
        optimizer.state[last] = {"momentum_buffer": wrong}
        refuses(optimizer, "its state 'momentum_buffer'.*No parameter was", RuntimeError)
        optimizer.state[last] = kept or {}
    vector = torch.nn.Parameter(torch.ones(3))
    vector.grad = torch.ones(3)
    optimizer.add_param_group({"params": [vector]})
    refuses(optimizer, "must be a 2D matrix", ValueError)
    vector.grad = None
    vast = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    vast.grad = torch.ones_like(vast)
    optimizer.add_param_group({"params": [vast]})
    refuses(optimizer, "^Muon does not support complex parameters$", RuntimeError)


def test_nonfinite_gradients() -> None:
    ours, theirs = pair("Muon", lr=0.1)
    for optimizer in (ours, theirs):
        run(optimizer, 1)
        bad = params_of(optimizer)[1]
        assert bad.grad is not None
        bad.grad[0, 0] = torch.inf
        optimizer.step()
        assert bad.isnan().all()
        assert all(p.isfinite().all() for p in params_of(optimizer) if p is not bad)
    skipping = make(fastopt.Muon, skip_nonfinite=True)
    params_of(skipping)[0].grad = torch.full_like(params_of(skipping)[0], torch.nan)
    before = copy.deepcopy(skipping)
    skipping.step()
    assert_same_state(skipping, before)
    assert skipping.skipped_steps == 1  # type: ignore[attr-defined]


def test_passes() -> None:
    """As torch's own tools one after another, with torch's class."""
    passes = {"max_grad_norm": 0.5, "max_grad_value": 0.05, "l1": 0.01, "ema_decay": 0.5}
    ours = make(fastopt.Muon, lr=0.1, clear_grads=True, track_stats=True, **passes)
    theirs = make(torch.optim.Muon, lr=0.1)
    averages: list[torch.Tensor] = []
    for k in range(3):
        run(ours, 1, seed=k)
        for i, p in enumerate(params_of(theirs)):
            p.grad = values(p.shape, p.dtype, 1000 * k + i)
        norm = torch.nn.utils.clip_grad_norm_(params_of(theirs), 0.5)
        for p in params_of(theirs):
            assert p.grad is not None
            p.grad.clamp_(-0.05, 0.05).add_(p.detach().sign(), alpha=0.01)
        theirs.step()
        weights = [p.detach().clone() for p in params_of(theirs)]
        averages = [a.lerp(w, 0.5) for a, w in zip(averages or weights, weights, strict=True)]
        assert ours.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)  # type: ignore[attr-defined]
    for p, q, average in zip(params_of(ours), params_of(theirs), averages, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=3 * 0.1 * TOLERANCE)
        ema = ours.state[p]["ema"]
        torch.testing.assert_close(ema, average, rtol=1e-5, atol=3 * 0.1 * TOLERANCE)
        assert not p.grad.any()  # type: ignore[union-attr]
    assert len(ours.stats()) == len(SHAPES["Muon"])  # type: ignore[attr-defined]


def test_grad_scaler() -> None:
    scaled, plain = make(fastopt.Muon, clear_grads=True), make(fastopt.Muon)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    run(plain, 1)
    for i, p in enumerate(params_of(scaled)):
        p.grad = 4 * values(p.shape, p.dtype, 1000 + i)
    scaler.scale(torch.ones(()))
    scaler.step(scaled)
    scaler.update()
    for p, q in zip(params_of(scaled), params_of(plain), strict=True):
        assert torch.equal(p, q)
    params_of(scaled)[0].grad.fill_(torch.inf)  # type: ignore[union-attr]
    before = [p.detach().clone() for p in params_of(scaled)]
    scaler.step(scaled)
    assert all(torch.equal(p, q) for p, q in zip(params_of(scaled), before, strict=True))


def test_backend_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair("Muon", lr=0.1)
    run(ours, 1)
    assert "batched: 9 tensors" in str(fastopt.explain(ours))
    run(theirs, 1)
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    run(ours, 2, seed=4)
    run(theirs, 2, seed=4)
    assert_close(ours, theirs, 0.5)
    assert "FASTOPT_BACKEND=torch" in str(fastopt.explain(ours))


def test_other_subclasses_take_torchs_step() -> None:
    class Other(torch.Tensor):
        pass

    plain = torch.nn.Parameter(values((4, 5), torch.float32, 1))
    other = torch.nn.Parameter(values((5, 4), torch.float32, 2).as_subclass(Other))  # type: ignore[no-untyped-call]
    optimizer = fastopt.Muon([plain, other], lr=0.1)
    theirs = torch.optim.Muon([torch.nn.Parameter(p.detach().clone()) for p in (plain, other)], 0.1)
    run(optimizer, 2)
    run(theirs, 2)
    for p, q in zip(params_of(optimizer), params_of(theirs), strict=True):
        torch.testing.assert_close(torch.Tensor(p), torch.Tensor(q), rtol=1e-5, atol=0.01)
    assert "not a plain tensor" in str(fastopt.explain(optimizer))


def test_within_backward() -> None:
    made = []
    for inside in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(*(torch.nn.Linear(6, 6, bias=False) for _ in range(3)))
        optimizer = fastopt.Muon(net.parameters(), lr=0.1)
        for _ in range(3):
            loss = net(torch.ones(2, 6)).square().sum()
            if inside:
                with optimizer.step_in_backward():
                    loss.backward()
            else:
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
        made.append(optimizer)
    for p, q in zip(params_of(made[0]), params_of(made[1]), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=TOLERANCE * 0.1)


def test_memory() -> None:
    weighed = fastopt.memory([torch.empty(64, 32, requires_grad=True)], fastopt.Muon)
    assert weighed.bytes == dict.fromkeys(["weights", "gradients", "momentum_buffer"], 4 * 64 * 32)
