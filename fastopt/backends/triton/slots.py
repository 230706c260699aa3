"""One parameter of a launch: what is known of it, layouts, preparing it.

A flat kernel goes through memory in order, so all tensors of a parameter must lie alike; those of
one in compact formats in the order of its elements' indices, which its blocks and its noise go by.
Those that do not (a transposed gradient, a sliced parameter) are staged: copied into a dense layout
before the launch, and copied back after it where the launch writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# (format, rounds, word) of each stream of a parameter, None of one whose dtype says all; or None.
Stored = tuple[tuple[str, str, int] | None, ...] | None


@dataclass
class Slot:
    """What a launch knows of one parameter between two steps."""

    index: int  # over all groups, as in messages
    group: int
    param: Tensor
    kept: dict[str, Any]  # its dict in optimizer.state
    states: list[Tensor]
    names: tuple[str, ...]
    stored: Stored  # of parameter, gradient, states
    seconds: list[Tensor | None]  # the second planes of parameter and states, if it is compact
    carried: list[Tensor]  # the numbers beside its states, its step count first
    first: bool  # the states have never been written
    begins: bool = False  # nor has the average, which is then the last of the states
    layer: int = 0  # launched after lower layers, which share its memory
    strides: tuple[int, ...] = ()  # of every tensor the kernel sees
    dtypes: tuple[torch.dtype, ...] = ()  # of parameter, gradient and states
    # Of param and states, then of their second planes, for the kernel.
    addresses: list[int] = field(default_factory=list)
    stages: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (tensor, its dense copy)
    grad_stage: Tensor | None = None

    def row(self) -> tuple[int, int, tuple[int, ...], int]:
        """What the compiled core is told of it: see csrc/rows.h."""
        stage = 0 if self.grad_stage is None else self.grad_stage.data_ptr()
        return self.index, self.group, self.strides, stage


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill one run of memory, in any order of dimensions."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1:
            if stride != expected and 0 not in shape:
                return False
            expected *= size
    return True


def lies_as(tensor: Tensor, strides: tuple[int, ...]) -> bool:
    """Whether `tensor` has these strides, wherever they matter."""
    own = tensor.stride()
    if own == strides or tensor.numel() == 0:
        return True
    return all(a == b or size == 1 for a, b, size in zip(own, strides, tensor.shape, strict=True))


def staged(param: Tensor, others: Sequence[Tensor | None]) -> bool:
    """Whether these tensors of a parameter do not lie alike, so that some are staged."""
    dense = is_dense(param.shape, param.stride())
    return not dense or not all(lies_as(t, param.stride()) for t in others if t is not None)


def prepare(slot: Slot, grad: Tensor) -> None:
    """Decide the layout and make room for what must be staged."""
    param = slot.param.detach()
    dense = is_dense(param.shape, param.stride()) and slot.stored is None
    layout = param if dense else torch.empty(param.shape, device="meta")
    slot.strides = layout.stride()
    slot.dtypes = tuple(t.dtype for t in (param, grad, *slot.states))
    for tensor in (param, *slot.states, *slot.seconds):
        if tensor is None:
            slot.addresses.append(0)
            continue
        seen = tensor
        if tensor.shape == param.shape and not lies_as(tensor, slot.strides):
            seen = torch.empty_strided(
                param.shape, slot.strides, dtype=tensor.dtype, device=param.device
            )
            slot.stages.append((tensor.detach(), seen))
        slot.addresses.append(seen.data_ptr())
    if not lies_as(grad, slot.strides):
        slot.grad_stage = torch.empty_strided(
            param.shape, slot.strides, dtype=grad.dtype, device=param.device
        )
