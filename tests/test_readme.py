"""The README's training loops, before and after, run: the same losses, the same accuracy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastopt

README = Path(__file__).parents[1] / "README.md"


def blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)


def test_before_and_after() -> None:
    before, after = (block for block in blocks() if "for x, y in batches" in block)
    assert len(before.splitlines()) <= 12
    assert len(after.splitlines()) <= 12
    results = []
    for block in (before, after):
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        batches = [(torch.randn(64, 5) * 9, torch.randint(3, (64,))) for _ in range(7)]
        losses: list[float] = []

        def loss_of(logits: torch.Tensor, y: torch.Tensor, to: Any = losses) -> torch.Tensor:
            loss = cross_entropy(logits, y)
            to.append(loss.item())
            return loss

        def evaluate(net: torch.nn.Module, data: Any = batches) -> float:
            return sum(cross_entropy(net(x), y).item() for x, y in data)

        names: dict[str, Any] = {
            "AveragedModel": AveragedModel,
            "batches": batches,
            "clip_grad_norm_": clip_grad_norm_,
            "cross_entropy": loss_of,
            "evaluate": evaluate,
            "fastopt": fastopt,
            "get_ema_multi_avg_fn": get_ema_multi_avg_fn,
            "model": model,
            "torch": torch,
        }
        exec(compile(block, "README.md", "exec"), names)
        assert all((p.grad == 0).all() for p in model.parameters())
        results.append([*losses, names["accuracy"]])
    assert len(results[0]) == 8
    assert results[0] == pytest.approx(results[1], rel=1e-5)
