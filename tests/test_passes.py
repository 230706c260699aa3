"""The passes around an update: each alone, in pairs and all together, against the NumPy reference
bit for bit and against torch's own passes one after another; then their norm, skips and layouts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import (
    ALL_DTYPES,
    ON_TRITON,
    Optimizer,
    Stepped,
    assert_close_state,
    assert_same_bits,
    assert_same_state,
    grads_for,
    parameter,
    params_of,
    to_numpy,
    values,
)
from test_layouts import LAYOUTS, Watched
from torch import Tensor

from fastopt import _core
from fastopt.rules import passes

pytestmark = pytest.mark.parity

SINGLE: dict[str, dict[str, Any]] = {
    "norm": {"max_grad_norm": 0.7},
    "no_clipping": {"max_grad_norm": math.inf},
    "value": {"max_grad_value": 0.4},
    "skip": {"skip_nonfinite": True},
    "l1": {"l1": 0.03},
    "ema": {"ema_decay": 0.9},
    "ema_of_now": {"ema_decay": 0.3},
    "clear": {"clear_grads": True},
    "stats": {"track_stats": True},
}
ALL = {k: v for one in SINGLE.values() for k, v in one.items()} | SINGLE["norm"] | SINGLE["ema"]
PAIRS = {
    f"{a}-{b}": SINGLE[a] | SINGLE[b]
    for a, b in itertools.combinations(SINGLE, 2)
    if not SINGLE[a].keys() & SINGLE[b].keys()
}
if ON_TRITON:  # its interpreter takes half a second for what the engine does in a millisecond
    PAIRS = dict(list(PAIRS.items())[::5])
COMBINED = {**SINGLE, **PAIRS, "all": ALL}
SIZES = [(7,), (3, 11), (0,), (1024,), (2500,)]


def crossed(some: Sequence[Any], others: Sequence[Any]) -> list[tuple[Any, Any]]:
    """Each with each; in the interpreter each with one, but everything with all passes."""
    return [
        (a, b)
        for i, a in enumerate(some)
        for j, b in enumerate(others)
        if not ON_TRITON or a == "all" or i % len(others) == j
    ]


def strongest(optimizer: Optimizer) -> dict[str, Any]:
    return {"lr": 0.05} | optimizer.strongest


class Reference:
    """Several parameters stepped by the references, with their passes."""

    def __init__(self, optimizer: Optimizer, params: Sequence[Tensor], **hyper: Any) -> None:
        own = {k: hyper.pop(k) for k in list(hyper) if k in ALL}
        self.maximize = hyper.pop("maximize", False)
        self.own = own
        self.stepped = [Stepped(optimizer, p, **hyper) for p in params]
        self.averages: list[np.ndarray | None] = [None] * len(params)
        self.norm, self.stats = math.nan, {}

    def step(self, grads: Sequence[Tensor], grad_scale: float | None = None) -> None:
        own = self.own
        numbers = [to_numpy(g) for g in grads]
        self.norm = passes.total_norm(numbers, grad_scale)
        limit = own.get("max_grad_norm")
        factor = 1.0 if limit is None else passes.clip_factor(self.norm, limit)
        for i, (one, g) in enumerate(zip(self.stepped, numbers, strict=True)):
            before = one.p
            given = passes.gradient(
                one.p,
                g,
                dtype=one.dtype,
                grad_scale=grad_scale,
                factor=factor,
                max_grad_value=own.get("max_grad_value"),
                maximize=self.maximize,
                l1=own.get("l1", 0.0),
            )
            one.count += 1
            one.p, one.states = one.rule(
                one.p, given, one.states, step=one.count, dtype=one.dtype, **one.hyper
            )
            if own.get("ema_decay") is not None:
                self.averages[i] = passes.average(
                    self.averages[i], one.p, own["ema_decay"], one.dtype
                )
                one.states = {**one.states, "ema": self.averages[i]}
            self.stats[f"0.{i}"] = [
                np.linalg.norm(x.astype(float)) for x in (g, one.p - before, one.p)
            ]

    def check(self, optimizer: torch.optim.Optimizer) -> None:
        for one, p in zip(self.stepped, params_of(optimizer), strict=True):
            one.check(p, optimizer.state[p])


@pytest.mark.parametrize(("combination", "dtype"), crossed([*COMBINED], ALL_DTYPES), ids=str)
def test_bits(optimizer: Optimizer, combination: str, dtype: torch.dtype) -> None:
    """Three steps over several sizes have the reference's bits, and leave what they should."""
    own = COMBINED[combination]
    hyper = {**strongest(optimizer), **own}
    params = [parameter(size, dtype, seed=i) for i, size in enumerate(SIZES)]
    for p in params[:2]:
        p.data.flatten()[:3] = 0  # where the sign is zero
    expected = Reference(optimizer, params, **hyper)
    ours = optimizer.ours(params, **hyper)
    for k in range(3):
        grads = [values(p.shape, dtype, seed=10 * k + i) for i, p in enumerate(params)]
        for p, g in zip(params, grads, strict=True):
            p.grad = g.clone()
        expected.step(grads)
        ours.step()
        expected.check(ours)
        for p, g in zip(params, grads, strict=True):
            assert_same_bits(p.grad, torch.zeros_like(g) if own.get("clear_grads") else g)
        if own.keys() & {"max_grad_norm", "skip_nonfinite"}:
            wide = dtype.to_real() == torch.float64
            assert ours.grad_norm.dtype == (torch.float64 if wide else torch.float32)
            assert ours.grad_norm.item() == (expected.norm if wide else np.float32(expected.norm))
        else:
            assert ours.grad_norm is None
        if own.get("track_stats"):
            assert ours.stats().keys() == {
                "0.0",
                "0.1",
                "0.3",
                "0.4",
            }  # nothing to tell of no number
            for name, found in ours.stats().items():
                g, update, weight = expected.stats[name]
                wanted = [g, update, weight, update / weight]
                np.testing.assert_allclose(list(found.values()), wanted, rtol=1e-6)


@pytest.mark.engine_only("instruction sets and threads")
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_bits_of_isas_and_threads(
    optimizer: Optimizer, dtype: torch.dtype, threads: int, isa: str
) -> None:
    """The norm, what it clips, and the statistics do not depend on vector width or threads."""
    sizes = [(20001,), (5,), (123, 430), (16384,), (1,)]
    results = []
    for count in (1, threads):
        torch.set_num_threads(count)
        ours = optimizer.ours([parameter(s, dtype, seed=i) for i, s in enumerate(sizes)], **ALL)
        for k in range(2):
            grads_for(params_of(ours), seed=k)
            ours.step()
        results.append(ours)
    assert_same_state(*results)
    assert results[0].stats() == results[1].stats()
    params = [parameter(s, dtype, seed=i) for i, s in enumerate(sizes)]
    grads_for(params, seed=1)
    norm = passes.total_norm([to_numpy(p.grad) for p in params])
    assert results[0].grad_norm == torch.tensor(norm, dtype=results[0].grad_norm.dtype)
    expected = EXPECTED_STATS.setdefault((str(optimizer), dtype), results[0].stats())
    assert results[0].stats() == expected


EXPECTED_STATS: dict[Any, Any] = {}  # of the first instruction set


def composed(optimizer: Optimizer, own: dict[str, Any], params: list[Tensor], hyper: Any) -> Any:
    """Torch's passes around torch's optimizer, as a user would write them."""
    theirs = optimizer.theirs(params, **hyper)
    reals = [torch.view_as_real(p) if p.is_complex() else p for p in map(Tensor.detach, params)]
    averages: list[Tensor] = []

    def step() -> None:
        grads = [torch.view_as_real(p.grad) if p.is_complex() else p.grad for p in params]
        if "max_grad_norm" in own:
            torch.nn.utils.clip_grad_norm_(params, own["max_grad_norm"])
        if "max_grad_value" in own:
            torch._foreach_clamp_max_(grads, own["max_grad_value"])
            torch._foreach_clamp_min_(grads, -own["max_grad_value"])
        if "l1" in own:
            sign = -1 if hyper.get("maximize") else 1
            torch._foreach_add_(grads, torch._foreach_sign(reals), alpha=sign * own["l1"])
        theirs.step()
        if "ema_decay" in own:
            if averages:
                torch._foreach_lerp_(averages, reals, 1 - own["ema_decay"])
            else:
                averages.extend(p.clone() for p in reals)
            for p, average in zip(params, averages, strict=True):
                ema = torch.view_as_complex(average) if p.is_complex() else average
                theirs.state[p]["ema"] = ema

    return theirs, step


@pytest.mark.engine_only("what has its bits has its values")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("combination", COMBINED)
def test_torchs_passes(optimizer: Optimizer, combination: str, dtype: torch.dtype) -> None:
    own = COMBINED[combination]
    hyper = strongest(optimizer)
    sizes = [s for s in SIZES if 0 not in s]
    ours = optimizer.ours(
        [parameter(s, dtype, seed=i) for i, s in enumerate(sizes)], **hyper, **own
    )
    params = [parameter(s, dtype, seed=i) for i, s in enumerate(sizes)]
    theirs, step = composed(optimizer, own, params, hyper)
    for k in range(3):
        grads_for(params_of(ours), seed=k)
        grads_for(params, seed=k)
        ours.step()
        step()
    assert_close_state(ours, theirs)


@pytest.mark.parametrize(
    ("dtype", "bad"), crossed(ALL_DTYPES, [math.nan, math.inf, -math.inf]), ids=str
)
def test_skip(optimizer: Optimizer, dtype: torch.dtype, bad: float) -> None:
    """A NaN or an infinity in the last gradient's last number: nothing changes.

    On Triton no host knows of it: autograd is told of a step, and the states of a first one stay.
    """
    own = {**ALL, **strongest(optimizer)}
    ours, plain = (
        optimizer.ours([parameter((300,), dtype, seed=i) for i in range(3)], **own) for _ in "ab"
    )
    for k in range(4):
        grads_for(params_of(ours), seed=k)
        if k in (0, 2):
            before = [p.detach().clone() for p in params_of(ours)]
            versions = [p._version for p in params_of(ours)]
            params_of(ours)[-1].grad[-1] = bad
            ours.step()
            for p, q, version in zip(params_of(ours), before, versions, strict=True):
                assert_same_bits(p, q)
                assert p._version == version + ON_TRITON
                assert (p.grad == 0).all()  # cleared: the next backward() adds to it
            assert not ours.grad_norm.isfinite()
        else:
            grads_for(params_of(plain), seed=k)
            ours.step()
            plain.step()
        if not (ON_TRITON and k == 0):
            assert_same_state(ours, plain)
    assert ours.skipped_steps == 2
    assert plain.skipped_steps == 0


def test_large_doubles_are_finite(optimizer: Optimizer) -> None:
    """Their squares overflow, and so does the norm, as torch's: that is no reason to skip."""
    p = parameter((5,), torch.float64, seed=0)
    ours = optimizer.ours([p], skip_nonfinite=True)
    p.grad = torch.full_like(p, 1e200)
    ours.step()
    assert ours.skipped_steps == 0
    assert ours.grad_norm == math.inf


def test_without_skipping(optimizer: Optimizer) -> None:
    """A gradient of NaN makes a norm of NaN, and that makes all parameters NaN, as torch's does.

    Where the update is a sign, which is 0 for NaN, it makes the moments NaN.
    """
    params = [parameter((5,), torch.float32, seed=i) for i in range(2)]
    ours = optimizer.ours(params, max_grad_norm=1.0)
    grads_for(params, seed=0)
    params[0].grad[0] = math.nan
    ours.step()
    spoiled = params
    if not optimizer.continuous:
        moment, *_ = _core.kinds(ours._rule, ours.param_groups[0])
        spoiled = [ours.state[p][moment] for p in params]
    assert all(t.isnan().all() for t in spoiled)


@pytest.mark.parametrize(
    "combination", ["clear", "all"] if ON_TRITON else ["norm", "skip", "clear", "ema", "all"]
)
@pytest.mark.parametrize("overflows", [(), (0,), (1, 2)], ids=str)
def test_scaler(optimizer: Optimizer, combination: str, overflows: tuple[int, ...]) -> None:
    """With GradScaler the norm is that of the unscaled gradients, and skipped steps are skipped;
    and counted, where step() hears of them.
    """
    own = COMBINED[combination] | {"fused": True}
    scaled, plain = (
        optimizer.ours([parameter((90,), torch.float32, seed=i) for i in range(2)], **own)
        for _ in "ab"
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=10**6)
    for k in range(4):
        grads_for(params_of(scaled), seed=k)
        for p in params_of(scaled):
            p.grad *= scaler.get_scale()
        if k in overflows:
            params_of(scaled)[0].grad[3] = math.inf
        scaler.scale(torch.ones(()))
        scaler.step(scaled)
        scaler.update()
        if k not in overflows:
            grads_for(params_of(plain), seed=k)
            plain.step()
            if plain.grad_norm is not None:
                assert_same_bits(scaled.grad_norm, plain.grad_norm)
    assert_same_state(scaled, plain)
    assert scaled.skipped_steps == (len(overflows) if own.get("skip_nonfinite") else 0)


def test_groups(optimizer: Optimizer) -> None:
    """One norm over all groups; each group clips by its own limit, or not at all."""
    limits = [0.5, None, 2.0]
    params = [parameter((50,), torch.float32, seed=i) for i in range(3)]
    groups = [{"params": [p], "max_grad_norm": m} for p, m in zip(params, limits, strict=True)]
    ours = optimizer.ours(groups)
    references = [
        Reference(optimizer, [p], max_grad_norm=m) for p, m in zip(params, limits, strict=True)
    ]
    grads_for(params, seed=1)
    norm = passes.total_norm([to_numpy(p.grad) for p in params])
    ours.step()
    assert ours.grad_norm == np.float32(norm)
    for p, m, reference in zip(params, limits, references, strict=True):
        factor = 1.0 if m is None else passes.clip_factor(norm, m)
        reference.own = {}
        scaled = passes.gradient(to_numpy(p), to_numpy(p.grad), factor=factor)
        reference.step([torch.from_numpy(scaled)])
        reference.stepped[0].check(p, ours.state[p])


@pytest.mark.parametrize(
    ("layout", "dtype"),
    crossed([*LAYOUTS], [torch.float32, torch.float64, torch.complex64]),
    ids=str,
)
def test_layouts(optimizer: Optimizer, layout: str, dtype: torch.dtype) -> None:
    """Views of parameters, gradients and averages: as contiguous ones, and nothing beside them."""
    shape = LAYOUTS[layout][0]
    own = {**strongest(optimizer), **ALL}
    plain = optimizer.ours([parameter(shape, dtype, seed=0)], **own)
    watches = [Watched(params_of(plain)[0].detach(), layout)]
    ours = optimizer.ours([torch.nn.Parameter(watches[0].view)], **own)
    for k in range(2):
        grads_for(params_of(plain), seed=k)
        (p,) = params_of(ours)
        watches.append(Watched(params_of(plain)[0].grad, layout))
        p.grad = watches[-1].view
        if k == 1:
            watches.append(Watched(ours.state[p]["ema"], layout))
            ours.state[p]["ema"] = watches[-1].view
        ours.step()
        plain.step()
        assert (p.grad == 0).all()
        # The numbers of a view are summed in another order: the norm may differ in a last bit.
        torch.testing.assert_close(ours.grad_norm, plain.grad_norm)
        for found, expected in zip(ours.stats().values(), plain.stats().values(), strict=True):
            assert list(found.values()) == pytest.approx(list(expected.values()))
    assert_close_state(ours, plain)
    for watch in watches:
        watch.check()


def test_expanded_gradients(optimizer: Optimizer) -> None:
    """One number in memory for many: read as such, but not to be cleared."""
    p, q = (parameter((4, 70), torch.float32, seed=0) for _ in "ab")
    ours, plain = optimizer.ours([p], max_grad_norm=0.1), optimizer.ours([q], max_grad_norm=0.1)
    p.grad = values((4, 1), torch.float32, seed=1).expand(4, 70)
    q.grad = p.grad.contiguous()
    ours.step()
    plain.step()
    assert_same_state(ours, plain)
    ours.param_groups[0]["clear_grads"] = True
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="its gradient is expanded"):
        ours.step()
    assert_same_bits(p, before)


@pytest.mark.parametrize("clears", [(True, True, True), (True, False, False)], ids=str)
def test_a_shared_gradient_is_cleared_last(optimizer: Optimizer, clears: tuple[bool, ...]) -> None:
    """Also where only some of the groups that share it clear theirs."""
    grad = values((40_000,), torch.float32, seed=9)

    def make(own: Sequence[bool]) -> torch.optim.Optimizer:
        params = [parameter((40_000,), torch.float32, seed=i) for i in range(3)]
        return optimizer.ours(
            [{"params": [p], "clear_grads": on} for p, on in zip(params, own, strict=True)]
        )

    shared, apart = make(clears), make((False, False, False))
    for p in params_of(apart):
        p.grad = grad.clone()
    for p in params_of(shared):
        p.grad = grad
    shared.step()
    apart.step()
    assert_same_state(shared, apart)
    assert (grad == 0).all()


def test_autograd_is_told_of_cleared_gradients(optimizer: Optimizer) -> None:
    p = parameter((5,), torch.float32, seed=0)
    p.grad = torch.ones(5)
    version = p.grad._version
    optimizer.ours([p], clear_grads=True).step()
    assert p.grad._version > version
