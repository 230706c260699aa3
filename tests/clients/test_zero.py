"""torch's own wrapper, ZeroRedundancyOptimizer: each process steps its share of the parameters."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist
from alike import BATCHES, assert_alike, assert_on_engine, loss_of, net, torchs
from processes import run

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.distributed.optim import ZeroRedundancyOptimizer

pytestmark = pytest.mark.filterwarnings("ignore")


def train(model: Any, optimizer: Any, clip: bool) -> None:
    for x, label in BATCHES:
        optimizer.zero_grad()
        loss_of(model(x), label).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()


def check(cls: Any) -> None:
    whole = net()
    train(whole, torchs(cls)(whole.parameters(), lr=0.05), clip=True)
    for own in ({}, {"max_grad_norm": 0.1, "norm_group": dist.group.WORLD}):
        model = net()
        optimizer = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=cls, lr=0.05, **own)
        train(model, optimizer, clip=not own)
        assert_on_engine(optimizer, f"{cls.__name__} (in ZeroRedundancyOptimizer)")
        mine = sum(len(group["params"]) for group in optimizer.optim.param_groups)
        assert 0 < mine < 4
        assert_alike(model.parameters(), whole.parameters(), net().parameters())


@pytest.mark.parametrize("cls", [fastopt.SGD, fastopt.AdamW])
def test_training(cls: Any) -> None:
    """Clipped by torch, or by ours over the processes."""
    run(2, check, cls)
