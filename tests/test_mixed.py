"""Streams of several dtypes: gradients and states of another type than their parameter's. Computed
in float32, or in float64 where a stream is, and each value rounded to its own tensor's type.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import (
    BACKEND,
    NUMBERS,
    ON_TRITON,
    Optimizer,
    assert_same_bits,
    run,
    storage_name,
    to_numpy,
    values,
)
from torch import Tensor

import fastopt
from fastopt.rules import passes
from fastopt.rules.arithmetic import Arithmetic

pytestmark = pytest.mark.parity


class Types(NamedTuple):
    param: torch.dtype
    grad: torch.dtype
    state: torch.dtype

    def __str__(self) -> str:
        return "-".join(str(t).removeprefix("torch.") for t in self)

    @property
    def computed(self) -> str:
        return "float64" if torch.float64 in [t.to_real() for t in self] else "float32"


TYPES = [
    Types(torch.bfloat16, torch.bfloat16, torch.float32),
    Types(torch.float16, torch.float16, torch.float32),
    Types(torch.bfloat16, torch.float32, torch.float32),
    Types(torch.float32, torch.bfloat16, torch.float32),
    Types(torch.float32, torch.float32, torch.bfloat16),
    Types(torch.float32, torch.float32, torch.float64),
    Types(torch.float64, torch.float16, torch.float32),
    Types(torch.complex64, torch.complex64, torch.complex128),
]


def rounded(x: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """What a tensor of this type keeps of it; to 16 bits by way of float32."""
    if dtype.to_real() == torch.float64:
        return np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(Arithmetic(storage_name(dtype)).store(np.asarray(x, np.float32)))


def parameter(shape: Any, types: Types, seed: int) -> Tensor:
    p = torch.nn.Parameter(values(shape, types.param, seed))
    p.grad_dtype = types.grad
    return p


def with_states(
    optimizer: Optimizer, params: list[Tensor], types: Types, **hyper: Any
) -> torch.optim.Optimizer:
    """After a step of one dtype, its states cast as a user or a loader would."""
    made = optimizer.ours(params, **hyper)
    for i, p in enumerate(params):
        p.grad = values(p.shape, types.grad, seed=i)
    made.step()
    for state in made.state.values():
        for name, t in state.items():
            if name not in NUMBERS:
                state[name] = t.to(types.state)
    return made


def expected(
    optimizer: Optimizer, p: Tensor, state: dict[str, Tensor], types: Types, **hyper: Any
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The reference's next step of one parameter, before anything is rounded to its own type."""
    wide = np.dtype(types.computed)
    own = {n: to_numpy(t) for n, t in state.items() if n not in ("step", "ema")}
    own = {n: x if n in NUMBERS else x.astype(wide) for n, x in own.items()}
    step = 1 + int(state["step"].item()) if "step" in state else 1
    assert p.grad is not None
    return optimizer.reference(
        to_numpy(p).astype(wide),
        to_numpy(p.grad).astype(wide),
        own,
        step=step,
        dtype=types.computed,
        **hyper,
    )


def check(made: torch.optim.Optimizer, p: Tensor, new: Any, types: Types) -> None:
    assert_same_bits(to_numpy(p), rounded(new[0], types.param).astype(to_numpy(p).dtype))
    for name, value in new[1].items():
        t = made.state[p][name]
        if name in NUMBERS:
            assert_same_bits(to_numpy(t), value, name)
            continue
        assert t.dtype == types.state
        assert_same_bits(to_numpy(t), rounded(value, types.state).astype(to_numpy(t).dtype), name)


@pytest.mark.parametrize("types", TYPES, ids=str)
def test_steps(optimizer: Optimizer, types: Types, isa: str) -> None:
    shapes = [(1,), (7,), (3, 11), (64,), (130,), (327,), (0,)]
    params = [parameter(s, types, seed=i) for i, s in enumerate(shapes)]
    hyper = optimizer.strongest
    made = with_states(optimizer, params, types, **hyper)
    for k in range(3):
        news = []
        for i, p in enumerate(params):
            p.grad = values(p.shape, types.grad, seed=10 * k + i + 5, wide=True)
            news.append(expected(optimizer, p, made.state[p], types, **hyper))
        made.step()
        for p, new in zip(params, news, strict=True):
            check(made, p, new, types)
    assert {b.path for b in fastopt.explain(made).buckets} == {BACKEND}


def test_types_that_change_between_steps(optimizer: Optimizer) -> None:
    hyper = optimizer.strongest
    p = parameter((130,), TYPES[5], seed=0)
    made = with_states(optimizer, [p], TYPES[5], **hyper)
    for k, types in enumerate([TYPES[3], TYPES[4], TYPES[5], TYPES[3]]):
        p.grad = None
        p.grad_dtype = types.grad
        p.grad = values(p.shape, types.grad, seed=k)
        for name, t in made.state[p].items():
            if name not in NUMBERS:
                made.state[p][name] = t.to(types.state)
        new = expected(optimizer, p, made.state[p], types, **hyper)
        made.step()
        check(made, p, new, types)


@pytest.mark.parametrize("threads", [1] if ON_TRITON else [1, 2, 3])
@pytest.mark.parametrize("types", TYPES[:2], ids=str)
def test_threads_and_layouts(optimizer: Optimizer, types: Types, threads: int) -> None:
    """Shares that end within a tensor; transposed and sliced streams, each in its own way."""
    torch.set_num_threads(threads)
    hyper = optimizer.strongest
    params = [parameter(s, types, seed=i) for i, s in enumerate([(20001,), (123, 130)])]
    made = with_states(optimizer, params, types, **hyper)
    state = made.state[params[1]]
    params[1].data = values((130, 123), types.param, seed=1).t()
    for name in [n for n in state if n not in NUMBERS][:1]:
        wide = torch.zeros(123, 260, dtype=types.state)
        wide[:, ::2] = state[name]
        state[name] = wide[:, ::2]
    news = []
    for i, p in enumerate(params):
        p.grad = values(p.shape, types.grad, seed=i + 5, wide=True)
        news.append(expected(optimizer, p, made.state[p], types, **hyper))
    made.step()
    for p, new in zip(params, news, strict=True):
        check(made, p, new, types)


@pytest.mark.parametrize("types", TYPES[:5], ids=str)
def test_passes(optimizer: Optimizer, types: Types) -> None:
    """The norm of gradients as they are stored, the average of weights as they are stored."""
    hyper = optimizer.strongest
    p = parameter((77,), types, seed=0)
    made = with_states(optimizer, [p], types, **hyper)
    own = {"max_grad_norm": 0.5, "ema_decay": 0.9, "clear_grads": True, "track_stats": True}
    made.param_groups[0].update(own)
    before = to_numpy(p)
    p.grad = values(p.shape, types.grad, seed=5)
    norm = passes.total_norm([to_numpy(p.grad)])
    factor = passes.clip_factor(norm, 0.5)
    made.state[p]["ema"] = p.detach().to(types.state).clone()
    ema = to_numpy(made.state[p]["ema"])
    maximize = hyper.get("maximize", False)
    given = passes.gradient(before, to_numpy(p.grad), factor=factor, maximize=maximize)
    state = made.state[p]
    own_states = {n: to_numpy(t) for n, t in state.items() if n not in ("step", "ema")}
    step = 1 + int(state["step"].item()) if "step" in state else 1
    new = optimizer.reference(
        before, given, own_states, step=step, **{**hyper, "maximize": False}, dtype="float32"
    )
    made.step()
    check(made, p, new, types)
    assert made.grad_norm == torch.tensor(norm, dtype=made.grad_norm.dtype)
    now = rounded(passes.average(ema, to_numpy(p), 0.9), types.state)
    assert_same_bits(to_numpy(made.state[p]["ema"]), now, "average")
    assert not p.grad.any()
    stats = made.stats()["0.0"]
    assert stats["weight_norm"] == pytest.approx(np.linalg.norm(to_numpy(p).astype(float)))
    assert stats["update_norm"] == pytest.approx(np.linalg.norm(to_numpy(p).astype(float) - before))


def test_a_gradient_in_float32_makes_buffers_like_it() -> None:
    p = parameter((9,), TYPES[2], seed=0)
    made = fastopt.SGD([p], lr=0.1, momentum=0.9)
    p.grad = values((9,), torch.float32, seed=1)
    made.step()
    assert_same_bits(made.state[p]["momentum_buffer"], p.grad)


def test_what_is_scaled_is_written_back_in_its_own_type(optimizer: Optimizer) -> None:
    types = TYPES[2]
    p = parameter((40,), types, seed=0)
    made = optimizer.ours([p])
    p.grad = values(p.shape, torch.float32, seed=1)
    quotient = p.grad / 3
    made.grad_scale, made.found_inf = torch.tensor(3.0), torch.tensor(0.0)
    made.step()
    assert_same_bits(p.grad, quotient)


def test_real_and_complex_do_not_mix(optimizer: Optimizer) -> None:
    p = torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    made = optimizer.ours([p], **optimizer.strongest)
    run(made, 1)
    name = next(n for n in made.state[p] if n not in NUMBERS)
    made.state[p][name] = torch.ones(3)
    with pytest.raises(RuntimeError, match="both must be real, or both complex"):
        made.step()


@pytest.mark.parametrize("average", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_swapping_averages_of_another_type(optimizer: Optimizer, average: torch.dtype) -> None:
    """Weights and averages come back bit for bit, whichever of both is the narrower."""
    p = torch.nn.Parameter(values((33,), torch.float32, seed=0))
    made = optimizer.ours([p], ema_decay=0.9)
    run(made, 2)
    made.state[p]["ema"] = made.state[p]["ema"].to(average)
    run(made, 1)
    weights, ema = p.detach().clone(), made.state[p]["ema"].clone()
    with made.swap_ema():
        assert_same_bits(p, ema.float())
    assert_same_bits(p, weights)
    assert_same_bits(made.state[p]["ema"], ema)


def test_an_average_on_torchs_path(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    p = torch.nn.Parameter(values((33,), torch.float32, seed=0))
    made = optimizer.ours([p], l1=0.1, max_grad_norm=1.0, ema_decay=0.9)
    run(made, 1)
    ema = made.state[p]["ema"] = made.state[p]["ema"].double()
    before = ema.clone()
    run(made, 1)
    torch.testing.assert_close(ema, before.lerp(p.detach().double(), 0.1))


def test_a_penalty_on_torchs_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient that torch's update is given stays of its own type, as torch demands."""
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    p, q = (parameter((33,), TYPES[3], seed=0) for _ in range(2))
    p.grad = values((33,), torch.bfloat16, seed=1)
    q.grad = p.grad + (0.1 * q.detach().sign()).bfloat16()
    fastopt.SGD([p], lr=0.1, l1=0.1).step()
    torch.optim.SGD([q], lr=0.1).step()
    assert_same_bits(p, q)
