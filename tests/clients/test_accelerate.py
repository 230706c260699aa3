"""Accelerate's wrapper with our optimizers: what it trains, and what it says of skipped steps."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import assert_alike, assert_on_engine, net, torchs

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    accelerate = pytest.importorskip("accelerate")
    from accelerate.optimizer import AcceleratedOptimizer

pytestmark = pytest.mark.filterwarnings("ignore")

OURS = [fastopt.SGD, fastopt.Adam, fastopt.AdamW, fastopt.RMSprop]


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("cls", OURS)
def test_training(cls: Any, precision: str) -> None:
    """As with torch's own class, with Accelerate's clipping and accumulation of gradients."""
    made = []
    for each in (cls, torchs(cls)):
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
        if each is cls:
            assert_on_engine(optimizer, f"{cls.__name__} (in AcceleratedOptimizer)")
        made.append(model)
    assert_alike(*(model.parameters() for model in [*made, net()]))


def test_resuming(tmp_path: Path) -> None:
    """From save_state(), to the bit, averages too."""

    def prepared() -> tuple[Any, Any, Any]:
        accelerate.state.AcceleratorState._reset_state(True)
        accelerator, model = accelerate.Accelerator(cpu=True), net()
        own = {"max_grad_norm": 0.1, "ema_decay": 0.9}
        return accelerator, *accelerator.prepare(model, fastopt.AdamW(model.parameters(), **own))

    def train(accelerator: Any, model: Any, optimizer: Any) -> None:
        for k in range(4):
            optimizer.zero_grad()
            accelerator.backward(model(torch.full((2, 6), float(k))).square().sum())
            optimizer.step()

    accelerator, model, optimizer = prepared()
    train(accelerator, model, optimizer)
    accelerator.save_state(str(tmp_path))
    train(accelerator, model, optimizer)
    again, *other = prepared()
    again.load_state(str(tmp_path))
    train(again, *other)
    for p, q in zip(model.parameters(), other[0].parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(optimizer.state[p]["ema"], other[1].state[q]["ema"])


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
