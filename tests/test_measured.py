"""Rules that measure a tensor before they update it, over more tensors than the cache holds of
them: each as if it were alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import assert_same_bits, grads_for, values

from fastopt import _core, optim

# 64 KB to 2 MB a stream; empty ones first, between and last.
SHAPES = [(0,), (300, 70), (16_384,), (0, 3), (700, 700), (16_385,), (5,), (300, 301), (0,)]
MEASURING = [
    cls for cls in optim.CLASSES if cls._rule in _core.rules() and _core.waits_for_norms(cls._rule)
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}], ids=["bare", "average"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cls", MEASURING)
def test_each_tensor_as_if_alone(
    cls: Any, dtype: torch.dtype, options: dict[str, float], threads: int
) -> None:
    params = [torch.nn.Parameter(values(s, dtype, seed=i)) for i, s in enumerate(SHAPES)]
    params.insert(3, torch.nn.Parameter(values((301, 600), dtype, seed=9)[:, ::2]))  # strided
    params.insert(5, torch.nn.Parameter(values((20_001,), dtype, seed=10)[1:]))  # misaligned
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    together, *alone = [
        cls(some, lr=0.1, weight_decay=0.01, **options) for some in (params, *([q] for q in copies))
    ]
    usual = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for step in range(3):
            for some in (params, copies):
                grads_for(some, step)
            for optimizer in (together, *alone):
                optimizer.step()
    finally:
        torch.set_num_threads(usual)
    for p, q, one in zip(params, copies, alone, strict=True):
        assert_same_bits(p, q)
        assert together.state[p].keys() == one.state[q].keys()
        for name, t in together.state[p].items():
            assert_same_bits(t, one.state[q][name], name)


@pytest.mark.parametrize("clears", [False, True])
@pytest.mark.parametrize("cls", MEASURING)
def test_a_gradient_of_two_parameters(cls: Any, clears: bool) -> None:
    """It is cleared when both have been updated by it, though the first is updated before the
    second is measured.
    """
    size = 300_000
    params = [torch.nn.Parameter(values((size,), torch.float32, seed=i)) for i in range(2)]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in params]
    together = cls(params, weight_decay=0.01, clear_grads=clears)
    apart = cls(copies, weight_decay=0.01)
    for step in range(2):
        grad = values((size,), torch.float32, seed=5 + step)
        for p, q in zip(params, copies, strict=True):
            p.grad, q.grad = grad, grad.clone()
        together.step()
        apart.step()
        assert bool(grad.any()) != clears
    for p, q in zip(params, copies, strict=True):
        assert_same_bits(p, q)
