"""Accelerate's wrapper with our optimizers: what it trains, and what it says of skipped steps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accelerate = pytest.importorskip("accelerate")
    from accelerate.optimizer import AcceleratedOptimizer

pytestmark = pytest.mark.filterwarnings("ignore")

OURS = [fastopt.SGD, fastopt.Adam, fastopt.AdamW, fastopt.RMSprop]


def net() -> Any:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("cls", OURS)
def test_training(cls: Any, precision: str) -> None:
    """As with torch's own class, with Accelerate's clipping and accumulation of gradients."""
    made = []
    for each in (cls, getattr(torch.optim, cls.__name__)):
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator = accelerate.Accelerator(
            cpu=True, mixed_precision=precision, gradient_accumulation_steps=2
        )
        model = net()
        wrapped, optimizer = accelerator.prepare(model, each(model.parameters(), lr=0.05))
        for k in range(8):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(k))
            with accelerator.accumulate(wrapped):
                loss = torch.nn.functional.cross_entropy(wrapped(x).float(), torch.full((8,), 1))
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()
            assert not optimizer.step_was_skipped
        made.append(model)
    for p, q, before in zip(*(m.parameters() for m in [*made, net()]), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
        assert not torch.equal(p, before)


@pytest.mark.parametrize("cls", OURS)
def test_skipped_steps(cls: Any) -> None:
    """The wrapper sees that GradScaler left a step out, and schedulers wait for it."""
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.Accelerator(cpu=True)
    model = net()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = AcceleratedOptimizer(cls(model.parameters(), lr=0.05), scaler=scaler)
    for bad in (False, True, False):
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(2, 6)).square().sum()).backward()
        if bad:
            next(iter(model.parameters())).grad[0, 0] = torch.inf
        optimizer.step()
        assert optimizer.step_was_skipped == bad
        same = [torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        assert same == [bad] * len(same)
