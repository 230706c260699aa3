"""Rules over whole tensors under test: a pair of ours and torch's, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support import assert_same_bits, params_of, values

import fastopt

# Muon: square, wide, tall, single rows and columns, empty. Adafactor: vectors, small matrices by
# tiles and with a tail, rows of less and more than 16, single rows and columns, several units,
# several matrices of several units.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "Muon": [(6, 6), (5, 9), (9, 5), (1, 7), (7, 1), (1, 1), (5, 9), (0, 3), (64, 48)],
    "Adafactor": [
        *[(), (1,), (7,), (40_000,), (3, 3), (1, 9), (9, 1), (1, 1), (5, 17), (17, 5), (70, 3)],
        *[(4, 3, 3), (9, 5, 3, 3), (70, 2, 1, 1), (3, 2, 7, 7), (2, 3, 20, 33), (64, 64)],
        *[(1, 40_000), (40_000, 1), (300, 200), (2, 260, 170)],
    ],
}


def make(cls: Any, dtype: torch.dtype = torch.float32, **options: Any) -> torch.optim.Optimizer:
    shapes: Sequence[tuple[int, ...]] = SHAPES[cls.__name__]
    params = [torch.nn.Parameter(values(s, dtype, seed=i)) for i, s in enumerate(shapes)]
    made: torch.optim.Optimizer = cls(params, **copy.deepcopy(options))
    return made


def pair(
    name: str, dtype: torch.dtype = torch.float32, **options: Any
) -> list[torch.optim.Optimizer]:
    """Ours and torch's."""
    return [make(getattr(module, name), dtype, **options) for module in (fastopt, torch.optim)]


def refuses(optimizer: Any, match: str, error: type[Exception] = RuntimeError) -> None:
    """A step is refused and changes nothing."""
    params = params_of(optimizer)
    before = [p.detach().clone() for p in params]
    states = [{n: copy.deepcopy(t) for n, t in optimizer.state.get(p, {}).items()} for p in params]
    with pytest.raises(error, match=match):
        optimizer.step()
    for p, q, state in zip(params, before, states, strict=True):
        assert_same_bits(p, q)
        now = optimizer.state.get(p, {})
        assert [*now] == [*state]
        for name, t in state.items():
            assert_same_bits(torch.as_tensor(now[name]), torch.as_tensor(t), name)
