"""Every length up to two vectors and more, at every misalignment, for every dtype and instruction
set: the result is the reference's and the memory at both ends stays as it was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from support import NUMBERS, ON_TRITON, REAL_DTYPES, Optimizer, Stepped, assert_same_bits, values
from torch import Tensor

from fastopt import _core

pytestmark = pytest.mark.parity

WIDEST = 16  # lanes of float32 in the widest vectors (AVX-512)
# Triton's kernel tells multiples of 16 bytes from all others, and nothing else.
OFFSETS = [0, 1] if ON_TRITON else [0, 1, 2, 3, 5, 7, 9, 15]
MARGIN = 64


class Fenced:
    """A tensor at a chosen offset from its allocation, sentinels on both sides of it."""

    def __init__(self, content: Tensor, offset: int) -> None:
        self.memory = torch.full((2 * MARGIN + len(content),), 7.5, dtype=content.dtype)
        self.inside = slice(MARGIN + offset, MARGIN + offset + len(content))
        self.view = self.memory[self.inside]
        self.view.copy_(content)

    def check(self) -> None:
        assert (self.memory[: self.inside.start] == 7.5).all(), "wrote before the tensor"
        assert (self.memory[self.inside.stop :] == 7.5).all(), "wrote past the tensor"


def references(
    optimizer: Optimizer, full: Tensor, grads: list[Tensor], lengths: Iterable[int]
) -> dict[int, Stepped]:
    """Of the first numbers of a tensor. Every number has the same fate whatever its neighbours, so
    that one reference serves all; but where an update waits for norms.
    """

    def stepped(n: int) -> Stepped:
        found = Stepped(optimizer, full[:n], **optimizer.strongest)
        for g in grads:
            found.step(g[:n])
        return found

    if _core.waits_for_norms(optimizer.ours._rule):  # type: ignore[attr-defined]
        return {n: stepped(n) for n in lengths}
    whole, found = stepped(len(full)), {}
    for n in lengths:
        found[n] = small = copy.copy(whole)
        small.p = whole.p[:n]
        small.states = {name: s if name in NUMBERS else s[:n] for name, s in whole.states.items()}
    return found


@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=str)
def test_lengths(optimizer: Optimizer, dtype: torch.dtype, isa: str) -> None:
    hyper: dict[str, Any] = optimizer.strongest
    lengths = range(1, 2 * WIDEST + 2)
    full = values((len(lengths) + 1,), dtype, seed=0)
    grads = [values(full.shape, dtype, seed=1 + k, wide=True) for k in range(2)]
    expected = references(optimizer, full, grads, lengths)
    for offset in OFFSETS:
        fences = [
            [Fenced(full[:n], offset), Fenced(grads[0][:n], (offset + 3) % 16)] for n in lengths
        ]
        params = [torch.nn.Parameter(fence[0].view) for fence in fences]
        ours = optimizer.ours(params, **hyper)
        for k, g in enumerate(grads):
            for p, fence in zip(params, fences, strict=True):
                fence[1].view.copy_(g[: len(p)])
                p.grad = fence[1].view
            if k == 1:  # the states, too, at an offset of their own
                for p, fence in zip(params, fences, strict=True):
                    for name, state in ours.state[p].items():
                        if name not in NUMBERS:
                            fence.append(Fenced(state, (offset + len(fence)) % 16))
                            ours.state[p][name] = fence[-1].view
            ours.step()
        for p, fence in zip(params, fences, strict=True):
            n = len(p)
            expected[n].check(p, ours.state[p])
            assert_same_bits(fence[1].view, grads[1][:n], "gradient")
            for f in fence:
                f.check()
