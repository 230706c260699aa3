"""Hypothesis: any hyperparameters that torch accepts, any shape, strides, dtype, mixture of tensors
and history of steps, against the NumPy reference, bit for bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ALL_DTYPES, ON_TRITON, Optimizer, Stepped, discover, values
from torch import Tensor

pytestmark = pytest.mark.parity

quick = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

fractions = st.floats(0, 1, exclude_max=True)
sizes = st.floats(0, 10)
if ON_TRITON:  # whose kernel cannot tell what float32 rounds to 0 from 0: docs/gpu.md, Bits
    sizes = sizes.filter(lambda x: x == 0 or x > 1e-37)
HYPER: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.one_of(st.floats(0, 1), st.floats(0, 1e-6)),
    "alpha": fractions,
    "alpha_warmup": st.none() | st.integers(0, 4),
    "beta3_warmup": st.none() | st.integers(0, 4),
    "warmup_steps": st.integers(0, 4),
    "r": st.floats(0, 2),
    "weight_lr_power": st.floats(0, 2),
    "rho": st.floats(0, 1),
    "momentum_decay": fractions,
    "eps": st.one_of(st.floats(0, 1), st.just(1e-8)),
    "weight_decay": st.one_of(st.just(0.0), sizes),
    "momentum": st.one_of(st.just(0.0), fractions),
    "dampening": fractions,
    "nesterov": st.booleans(),
    "amsgrad": st.booleans(),
    "centered": st.booleans(),
    "maximize": st.booleans(),
    "decoupled_weight_decay": st.booleans(),
    "no_prox": st.booleans(),
}


@st.composite
def hyperparameters(draw: st.DrawFn, optimizer: Optimizer) -> dict[str, Any]:
    defaults = optimizer.theirs([torch.ones(1)]).defaults
    hyper = {name: draw(s) for name, s in HYPER.items() if name in defaults}
    if "betas" in defaults:
        hyper["betas"] = draw(st.tuples(*[fractions] * len(defaults["betas"])))
    if "train_mode" in defaults:  # what draws the parameter to its average is not 0
        pull = draw(st.floats(1e-6, 1, exclude_max=True))
        if "betas" in hyper:
            hyper["betas"] = (pull, hyper["betas"][1])
        else:
            hyper["momentum"] = pull
    if optimizer.name == "adamw":
        hyper.pop("decoupled_weight_decay", None)
    if hyper.get("nesterov"):
        if "dampening" in hyper:
            hyper["dampening"] = 0.0
        hyper["nesterov"] = hyper["momentum"] > 0
    return hyper


@st.composite
def strided(draw: st.DrawFn, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros of this shape as a slice with steps and margins of a permuted, larger tensor."""
    order = draw(st.permutations(range(len(shape))))
    steps = [draw(st.integers(1, 3)) for _ in shape]
    margins = [draw(st.integers(0, 2)) for _ in shape]
    whole = [m + n * s for n, s, m in zip(shape, steps, margins, strict=True)]
    memory = torch.zeros([whole[d] for d in order], dtype=dtype)
    view = memory.permute([order.index(d) for d in range(len(shape))])
    for d, (n, s, m) in enumerate(zip(shape, steps, margins, strict=True)):
        view = view.narrow(d, m, n * s)[(slice(None),) * d + (slice(None, None, s),)]
    assert view.shape == shape
    return view


shapes = st.lists(st.one_of(st.integers(0, 9), st.sampled_from([17, 65])), max_size=3).filter(
    lambda s: np.prod(s) < 3000
)


@pytest.mark.parametrize("optimizer_", discover(), ids=str)
@quick
@given(data=st.data())
def test_hyperparameters(optimizer_: Optimizer, data: st.DataObject) -> None:
    """Hyperparameters anew before each step; what changes the states is drawn once."""
    first = data.draw(hyperparameters(optimizer_))
    dtype = data.draw(st.sampled_from(ALL_DTYPES))
    p = torch.nn.Parameter(values((37,), dtype, seed=0))
    expected = Stepped(optimizer_, p, **first)
    ours = optimizer_.ours([p], **first)
    for k in range(3):
        if k:
            changes = data.draw(hyperparameters(optimizer_))
            for fixed in ("amsgrad", "centered", "momentum", "nesterov"):
                changes.pop(fixed, None)
            ours.param_groups[0].update(changes)
            expected.hyper.update(changes)
        p.grad = values(p.shape, dtype, seed=data.draw(st.integers(0, 99)), wide=True)
        expected.step(p.grad)
        ours.step()
        expected.check(p, ours.state[p])


@pytest.mark.parametrize("optimizer_", discover(), ids=str)
@quick
@given(data=st.data())
def test_tensors(optimizer_: Optimizer, data: st.DataObject) -> None:
    """Several tensors of any shapes, strides and dtypes; gradients of any strides, some missing."""
    hyper = list(optimizer_.variants.values())[-1]
    params: list[Any] = []
    for shape in map(tuple, data.draw(st.lists(shapes, min_size=1, max_size=4))):
        view = data.draw(strided(shape, data.draw(st.sampled_from(ALL_DTYPES))))
        params.append(torch.nn.Parameter(view.copy_(values(shape, view.dtype, len(params)))))
    ours = optimizer_.ours(params, **hyper)
    expected = [Stepped(optimizer_, p, **hyper) for p in params]
    for k in range(3):
        for i, (p, e) in enumerate(zip(params, expected, strict=True)):
            p.grad = None
            if data.draw(st.integers(0, 3)):
                g = values(p.shape, p.dtype, seed=10 * k + i, wide=True)
                p.grad = data.draw(strided(tuple(p.shape), p.dtype)).copy_(g)
                e.step(g)
        ours.step()
        for p, e in zip(params, expected, strict=True):
            e.check(p, ours.state[p] if e.count else {})
