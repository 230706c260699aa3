"""What a DTensor weighs on each process, then what it cannot have: placements, and how the engine
says so.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import mesh_of, run
from support import ON_TRITON, unlike, values
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import fastopt
from fastopt import ranks
from fastopt.precision import CODES, SCALE

pytestmark = pytest.mark.skipif(ON_TRITON, reason="DTensors take the CPU's engine")

PLACED: list[tuple[tuple[int, ...], list[Any]]] = [
    ((5, 64), [Shard(0)]),
    ((1, 128), [Shard(0)]),  # nothing on all processes but the first
    ((4, 256), [Shard(1)]),
    ((256,), [Shard(0)]),
    ((3, 64), [Replicate()]),
]
SHAPE = (3, 4, 64)
ASKED: list[dict[str, Any]] = [
    {"ema_decay": 0.9},
    {"state_bits": 8, "min_8bit_size": 64, "master_weight_bits": 24},
]


def check_bytes() -> None:
    """What is told beforehand is what this process then holds."""
    mesh = mesh_of(4)
    for asked in ASKED:
        params = [
            torch.nn.Parameter(
                distribute_tensor(values(shape, torch.bfloat16, seed=0), mesh, placements)
            )
            for shape, placements in PLACED
        ]
        told = fastopt.memory(params, fastopt.AdamW, **asked)
        made = fastopt.AdamW(params, **asked)
        for p in params:
            p.grad = torch.ones_like(p)
        made.step()
        held: dict[str, int] = {}
        for p in params:
            states = {n.removesuffix(SCALE).removesuffix(CODES): 0 for n in made.state[p]}
            for name, t in made.state[p].items():
                states[name.removesuffix(SCALE).removesuffix(CODES)] += bytes_of(t)
            states["numbers"] = states.pop("step")
            for name, count in {"weights": bytes_of(p), "gradients": bytes_of(p.grad)}.items():
                states[name] = count
            for name, count in states.items():
                held[name] = held.get(name, 0) + count
        assert held == told.bytes
        assert told == fastopt.memory(made)
        assert told.elements == sum(p.to_local().numel() for p in params)


def bytes_of(t: torch.Tensor) -> int:
    return (t.to_local() if isinstance(t, DTensor) else t).nbytes


def check_offloaded() -> None:
    """Scales are where the parameter's memory is, whatever device its mesh is of."""
    mesh = mesh_of(4)
    part = DTensor.from_local(torch.empty(2, 64, device="meta"), mesh, [Shard(0)])
    scales = ranks.zeros_beside(part, (8, 1), torch.uint8)
    assert isinstance(scales, DTensor)
    assert (scales.shape, scales.placements) == ((8, 1), part.placements)
    assert scales.to_local().shape == (2, 1)
    assert scales.to_local().device.type == "meta"


def check_partial() -> None:
    """A parameter that is still to be summed is not its local memory: torch's step, as before."""
    mesh = mesh_of(4)
    for optimizer in unlike():
        made, theirs = (
            cls([torch.nn.Parameter(DTensor.from_local(torch.ones(4), mesh, [Partial()]))])
            for cls in (optimizer.ours, optimizer.theirs)
        )
        assert "placement P(sum)" in str(fastopt.explain(made)), optimizer
        for each in (made, theirs):
            (p,) = each.param_groups[0]["params"]
            p.grad = DTensor.from_local(torch.ones(4), mesh, [Partial()])
            try:
                each.step()
                result = p.full_tensor()
            except Exception as error:  # torch's own words
                result = str(error)
            if each is made:
                ours = result
        assert str(ours) == str(result), str(optimizer)


def check_middle() -> None:
    """Cut in one dimension, wherever it is: to the bit, noise too. In two behind the first one, the
    local elements lie in runs of runs: float32 does not mind, but noise goes by the place in the
    whole, which the engine then does not know.
    """
    mesh = mesh_of(2, 2)
    once, twice = [Replicate(), Shard(1)], [Shard(1), Shard(2)]
    noise = {"master_weight_bits": 24, "state_bits": 16}
    coded = {"state_bits": 8, "min_8bit_size": 64}
    for optimizer in unlike():
        for dtype, placements, asked, equals in (
            (torch.float32, once, coded, {}),  # blocks would be cut: float32
            (torch.bfloat16, once, noise, noise),
            (torch.float32, twice, {}, {}),
        ):
            whole = torch.nn.Parameter(values(SHAPE, dtype, seed=0))
            part = torch.nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, placements))
            alone, together = optimizer.ours([whole], **equals), optimizer.ours([part], **asked)
            for k in range(2):
                whole.grad = values(SHAPE, dtype, seed=k)
                part.grad = distribute_tensor(whole.grad, mesh, placements)
                alone.step()
                together.step()
            assert torch.equal(whole.detach(), part.detach().full_tensor()), (str(optimizer), asked)
            assert "cpu: 1 tensor" in str(fastopt.explain(together))
        for refused in (noise, coded, {"stochastic_rounding": True}):
            part = torch.nn.Parameter(
                distribute_tensor(values(SHAPE, torch.bfloat16, seed=0), mesh, twice)
            )
            before = part.detach().clone()
            together = optimizer.ours([part], **refused)
            begun = {*together.state[part]}  # Adagrad's constructor has made some
            part.grad = torch.ones_like(part)
            with pytest.raises(RuntimeError, match=r"cut within its middle\): mend that, or leave"):
                together.step()
            assert torch.equal(part.to_local(), before.to_local())
            assert {*together.state[part]} == begun


def check() -> None:
    check_bytes()
    check_offloaded()
    check_partial()
    check_middle()


def test_limits() -> None:
    run(4, check)
