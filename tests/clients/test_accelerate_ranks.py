"""Accelerate over two processes: DDP, and FSDP2, whose prepare() swaps the parameters."""

from __future__ import annotations

import os
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
    accelerate = pytest.importorskip("accelerate")
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

pytestmark = pytest.mark.filterwarnings("ignore")

OURS = [fastopt.SGD, fastopt.AdamW]


def accelerator_of(kind: str) -> Any:
    """One of the default process group, on the CPU."""
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    accelerate.state.AcceleratorState._reset_state(True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2) if kind == "fsdp2" else None
    made = accelerate.Accelerator(cpu=True, fsdp_plugin=plugin)
    assert made.distributed_type == DistributedType.MULTI_CPU
    if kind == "fsdp2":
        # Accelerate's state takes the plugin for GPUs only; the rest of it runs here as there.
        made.state.distributed_type = DistributedType.FSDP
        made.state.fsdp_plugin = plugin
    return made


def train(cls: Any, kind: str, **own: Any) -> tuple[Any, Any]:
    accelerator = accelerator_of(kind)
    model = net()
    model, optimizer = accelerator.prepare(model, cls(model.parameters(), lr=0.05, **own))
    for x, label in BATCHES:
        half = x.chunk(2)[accelerator.process_index]
        accelerator.backward(loss_of(model(half), label))
        if not own:
            accelerator.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def check(cls: Any, kind: str) -> None:
    whole = net()
    alone = torchs(cls)(whole.parameters(), lr=0.05)
    for x, label in BATCHES:
        alone.zero_grad()
        loss_of(whole(x), label).backward()
        torch.nn.utils.clip_grad_norm_(whole.parameters(), 0.1)
        alone.step()
    for own in ({}, {"max_grad_norm": 0.1}):
        model, optimizer = train(cls, kind, **own)
        assert_on_engine(optimizer, f"{cls.__name__} (in AcceleratedOptimizer)")
        sharded = [isinstance(p, dist.tensor.DTensor) for p in model.parameters()]
        assert sharded == [kind == "fsdp2"] * 4
        full = [p.full_tensor() if kind == "fsdp2" else p for p in model.parameters()]
        assert_alike(full, whole.parameters(), net().parameters())


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
@pytest.mark.parametrize("cls", OURS)
def test_training(cls: Any, kind: str) -> None:
    """As one process with torch's class over the whole batch, clipped by Accelerate or by ours."""
    run(2, check, cls, kind)
