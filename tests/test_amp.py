"""GradScaler's protocol: scaled steps, skipped steps (the first one too), unscale_ by hand, and the
attributes by themselves, against torch's optimizers with the same scaler.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support import (
    ON_TRITON,
    Optimizer,
    assert_begun,
    assert_close_state,
    assert_same_bits,
    assert_same_state,
    parameter,
    params_of,
    run,
    values,
)

pytestmark = pytest.mark.parity

SCALE = 2.0**10


def make(
    cls: Any, hyper: dict[str, Any], **more: Any
) -> tuple[torch.optim.Optimizer, torch.amp.GradScaler]:
    params = [parameter((5, 3), torch.float32, seed=0), parameter((9,), torch.float32, seed=1)]
    return cls(params, **hyper, **more), torch.amp.GradScaler(
        "cpu", init_scale=SCALE, growth_interval=10**6
    )


def scaled_step(made: Any, scaler: Any, k: int, overflow: bool, unscale: bool = False) -> None:
    for i, p in enumerate(params_of(made)):
        p.grad = values(p.shape, p.dtype, seed=10 * k + i) * scaler.get_scale()
    if overflow:
        params_of(made)[-1].grad[3] = torch.inf
    scaler.scale(torch.ones(()))  # what makes a scaler's tensors
    if unscale:
        scaler.unscale_(made)
    scaler.step(made)
    scaler.update()


# Who unscales: the step, in its one pass, or the scaler before it.
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["scaler", "step"])


@FUSED
@pytest.mark.parametrize("unscale", [False, True], ids=["", "unscale_"])
@pytest.mark.parametrize("overflows", [(), (0,), (0, 1), (2,), (0, 2, 3)], ids=str)
def test_scaler(
    optimizer: Optimizer, overflows: tuple[int, ...], unscale: bool, fused: bool
) -> None:
    """Five steps, some of which overflow and are skipped; the scale halves each time."""
    results = []
    for cls, more in ((optimizer.ours, {"fused": fused}), (optimizer.theirs, {})):
        made, scaler = make(cls, optimizer.strongest, **more)
        for k in range(5):
            before = [p.detach().clone() for p in params_of(made)]
            scaled_step(made, scaler, k, k in overflows, unscale)
            if k in overflows:
                for p, q in zip(params_of(made), before, strict=True):
                    assert_same_bits(p, q, "parameter after a skipped step")
            # The gradients are left unscaled: a power of two divides exactly. As in torch, the
            # fused step does not touch them where it is skipped.
            if k not in overflows or unscale or not more.get("fused"):
                for i, p in enumerate(params_of(made)):
                    g = values(p.shape, p.dtype, seed=10 * k + i)
                    if k in overflows and i == 1:
                        g[3] = torch.inf
                    assert_same_bits(p.grad, g)
        assert scaler.get_scale() == SCALE / 2 ** len(overflows)
        assert "grad_scale" not in made.__dict__ or made.grad_scale is None
        results.append(made)
    if fused:  # whose step counts have a type of their own, whatever torch's default
        for state in results[0].state.values():
            assert all(t.dtype == torch.float32 for t in state.values())
    assert_close_state(*results)


@FUSED
def test_same_as_without_scaler(optimizer: Optimizer, fused: bool) -> None:
    """Powers of two scale without rounding: the bits are those of an unscaled run."""
    made, scaler = make(optimizer.ours, optimizer.strongest, fused=fused)
    plain, _ = make(optimizer.ours, optimizer.strongest, fused=fused)
    for k in range(3):
        scaled_step(made, scaler, k, overflow=False)
        for i, p in enumerate(params_of(plain)):
            p.grad = values(p.shape, p.dtype, seed=10 * k + i)
        plain.step()
    assert_same_state(made, plain)


@FUSED
def test_skipped_first_step_leaves_no_garbage(optimizer: Optimizer, fused: bool) -> None:
    """No state after it, or the state of a beginning; never memory that nothing was written to."""
    made, scaler = make(optimizer.ours, optimizer.strongest, fused=fused)
    scaled_step(made, scaler, 0, overflow=True)
    starts = optimizer.starts(**optimizer.strongest)
    for p, state in made.state.items():
        assert_begun(state, p, starts)
    copied, _ = make(optimizer.ours, optimizer.strongest)
    copied.load_state_dict(made.state_dict())
    fresh, _ = make(optimizer.ours, optimizer.strongest)
    run(copied, 2)
    run(fresh, 2)
    assert_same_state(copied, fresh)


@pytest.mark.parametrize("copied", [lambda made: made, copy.deepcopy], ids=["", "deepcopy"])
def test_who_unscales(optimizer: Optimizer, copied: Any) -> None:
    """As torch's classes say it, which trainers ask: the step where `fused=True` is given. And
    where gradients are to be cleared, for GradScaler calls no other step in which they overflow.
    """

    def says(**options: Any) -> bool:
        made, _ = make(optimizer.ours, {}, **options)
        return bool(copied(made)._step_supports_amp_scaling)

    assert says(fused=True)
    for options in ({}, {"fused": False}, {"skip_nonfinite": True, "max_grad_norm": 1.0}):
        assert not says(**options)
    assert says(clear_grads=True)
    made, _ = make(optimizer.ours, {})
    made.param_groups[0]["clear_grads"] = True
    assert made._step_supports_amp_scaling


def test_gradients_to_be_cleared_recover(optimizer: Optimizer) -> None:
    """An infinity does not stay in gradients that backward() adds to."""
    made, scaler = make(optimizer.ours, optimizer.strongest, clear_grads=True)
    plain, _ = make(optimizer.ours, optimizer.strongest)
    for k in range(4):
        for i, p in enumerate(params_of(made)):
            g = values(p.shape, p.dtype, seed=10 * k + i) * scaler.get_scale()
            p.grad = g if p.grad is None else p.grad + g
        if k == 1:
            params_of(made)[0].grad[0] = torch.inf
        scaler.scale(torch.ones(()))
        scaler.step(made)
        scaler.update()
        if k != 1:
            for i, p in enumerate(params_of(plain)):
                p.grad = values(p.shape, p.dtype, seed=10 * k + i)
            plain.step()
    assert scaler.get_scale() == SCALE / 2
    assert_close_state(made, plain)


@FUSED
def test_every_class_takes_the_scale_itself(optimizer: Optimizer, fused: bool) -> None:
    """Where it is handed over, whoever does it."""
    made, _ = make(optimizer.ours, {}, fused=fused)
    # As GradScaler.step() does it:
    for p in params_of(made):
        p.grad = torch.full_like(p, 8.0)
    made.grad_scale, made.found_inf = torch.tensor(4.0), torch.tensor(1.0)
    before = params_of(made)[0].detach().clone()
    made.step()
    assert_same_bits(params_of(made)[0], before)
    made.found_inf.zero_()
    made.step()
    del made.grad_scale, made.found_inf
    assert all((p.grad == 2).all() for p in params_of(made))
    assert not torch.equal(params_of(made)[0], before)


def test_scaled_gradient_layouts(optimizer: Optimizer) -> None:
    """The unscaled gradient is written back into a strided view, and nothing beside it is."""
    memory = torch.full((6, 20), 7.5)
    p, q = (parameter((6, 7), torch.float32, seed=0) for _ in range(2))
    p.grad = memory[:, 3:17:2].copy_(values((6, 7), torch.float32, seed=1) * 4)
    q.grad = values((6, 7), torch.float32, seed=1)
    a, b = optimizer.ours([p]), optimizer.ours([q])
    a.grad_scale, a.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    a.step()
    b.step()
    assert_same_state(a, b)
    assert_same_bits(p.grad, q.grad)
    p.grad.fill_(7.5)
    assert (memory == 7.5).all()


def test_scaled_expanded_gradient(optimizer: Optimizer) -> None:
    """A gradient with one number in memory for many cannot be unscaled in place: as torch's scaler
    does, the engine refuses it, before anything is written.
    """
    p = parameter((4, 70), torch.float32, seed=0)
    start = p.detach().clone()
    ours = optimizer.ours([p])
    p.grad = torch.full((4, 1), 8.0).expand(4, 70)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(torch.ones(()))
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        scaler.step(ours)
    ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="its gradient is expanded"):
        ours.step()
    assert (p.grad == 8).all()
    assert_same_bits(p, start)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_gradient_that_two_parameters_share(optimizer: Optimizer, threads: int) -> None:
    """Unscaled once for each in turn, as by torch's fused step, and never by two threads at once.

    The middle two of four share it: with equal shares the second thread would begin with the later.
    """
    shape = (3_000,) if ON_TRITON else (200_000,)
    grad = values(shape, torch.float32, seed=1) * 4
    shared, apart = (
        optimizer.ours([parameter(shape, torch.float32, seed=k) for k in range(4)])
        for _ in range(2)
    )
    for made, grads in [
        (shared, [grad.clone(), *[grad.clone()] * 2, grad.clone()]),
        (apart, [grad / 2, grad / 2, grad / 4, grad / 2]),
    ]:
        for p, g in zip(params_of(made), grads, strict=True):
            p.grad = g
    shared.grad_scale, shared.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        shared.step()
        apart.step()
    finally:
        torch.set_num_threads(before)
    assert_same_state(shared, apart)
    for p, q in zip(params_of(shared), params_of(apart), strict=True):
        assert_same_bits(p, q)
