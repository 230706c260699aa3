"""One parameter of a launch: layouts, what is wrong with a tensor, building a slot.

A flat kernel goes through memory in order, so all tensors of a parameter must lie alike. Those that
do not (a transposed gradient, a sliced parameter) are staged: copied into a dense layout before the
launch, and copied back after it where the launch writes them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import _core
from ...stepping import Changed

PLAIN_TYPES = (Tensor, torch.nn.Parameter)


class Memory(NamedTuple):
    """First byte and the byte behind the last of what a launch reads or writes."""

    begin: int
    end: int
    written: bool


@dataclass
class Slot:
    """What a launch knows of one parameter between two steps."""

    index: int  # over all groups, as in messages
    group: int
    param: Tensor
    kept: dict[str, Any]  # its dict in optimizer.state
    states: list[Tensor]
    names: tuple[str, ...]
    step: Tensor | None
    first: bool  # the states have never been written
    begins: bool = False  # nor has the average, which is then the last of the states
    layer: int = 0  # launched after lower layers, which share its memory
    strides: tuple[int, ...] = ()  # of every tensor the kernel sees
    dtypes: tuple[torch.dtype, ...] = ()  # of parameter, gradient and states
    addresses: list[int] = field(default_factory=list)  # of param and states, for the kernel
    stages: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (tensor, its dense copy)
    grad_stage: Tensor | None = None

    def tensors(self) -> list[tuple[str, Tensor]]:
        """What the step writes, gradient aside, by what messages call it."""
        own = [("the parameter", self.param.detach())]
        own += [(f"its state {n!r}", t) for n, t in zip(self.names, self.states, strict=True)]
        return own if self.step is None else [*own, ("its state 'step'", self.step)]

    def memory(self, writes_grad: bool) -> list[Memory]:
        """All that the step reaches; the gradient first."""
        grad = self.param.grad
        own = [] if grad is None else [Memory(*extent(grad), writes_grad)]
        return own + [Memory(*extent(t), True) for _, t in self.tensors()]

    def but_gradient(self, memory: Sequence[Memory]) -> Sequence[Memory]:
        return memory if self.param.grad is None else memory[1:]

    def row(self) -> tuple[Any, ...]:
        """What the compiled core keeps of it: see csrc/collect.h."""
        stage = 0 if self.grad_stage is None else self.grad_stage.data_ptr()
        kept = (self.kept or None, self.names, self.step, self.first)
        return (self.group, self.param, *kept, self.strides, stage, type_name(self.dtypes[1]))


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


def extent(tensor: Tensor) -> tuple[int, int]:
    """First byte and the byte behind the last."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), tensor.data_ptr()
    return tensor.data_ptr(), tensor.data_ptr() + span(tensor) * tensor.element_size()


def span(tensor: Tensor) -> int:
    """Elements from the first to the last of a tensor that has any."""
    return 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def overlap(memory: Iterable[Memory]) -> bool:
    """Whether any two of these share a byte that one of them writes."""
    end = end_written = 0
    shared = False
    for begin, stop, written in sorted(m for m in memory if m.begin != m.end):
        shared |= begin < (end if written else end_written)
        end = max(end, stop)
        end_written = max(end_written, stop) if written else end_written
    return shared


class Elements:
    """A tensor's elements as NumPy sees memory: addresses to compare, not to follow."""

    def __init__(self, tensor: Tensor) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (tensor.data_ptr(), False),
            "shape": tuple(tensor.shape),
            "strides": tuple(s * tensor.element_size() for s in tensor.stride()),
            "typestr": f"|V{tensor.element_size()}",
        }


def share_elements(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have a byte in common, be it in between of each other's."""
    (begin, end), (start, stop) = extent(a), extent(b)
    return begin < stop and start < end and np.shares_memory(Elements(a), Elements(b))


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def not_a_tensor(value: object) -> str | None:
    """What is wrong with a value where a tensor of numbers that kernels take must be."""
    if not isinstance(value, Tensor) or type(value) not in PLAIN_TYPES:
        return f"is a {type(value).__name__}, not a plain torch.Tensor or torch.nn.Parameter"
    if type_name(value.dtype) not in _core.dtypes:
        return f"has a dtype other than {', '.join(_core.dtypes)}"
    return None


def mismatch(tensor: Tensor, param: Tensor) -> str | None:
    """What is wrong with a gradient or state beside its parameter."""
    if why := not_a_tensor(tensor):
        return why
    if tensor.layout != torch.strided:
        return f"has layout {tensor.layout}, allowed is torch.strided; to_dense() it first"
    if tensor.device != param.device:
        return (
            f"is on {tensor.device}, the parameter on {param.device}; move it there, as "
            "`model.to(device)` before building the optimizer does"
        )
    if tensor.shape != param.shape:
        own, expected = tuple(tensor.shape), tuple(param.shape)
        return f"has shape {own}, the parameter {expected}; they must be equal"
    if tensor.is_complex() != param.is_complex():
        return (
            f"has dtype {type_name(tensor.dtype)}, the parameter {type_name(param.dtype)}; both "
            "must be real, or both complex"
        )
    if tensor.is_conj() or tensor.is_neg():
        return "is a lazy view (is_conj() or is_neg() is true)"
    return None


def check_tensors(slot: Slot, grad: Tensor, writes_grad: bool) -> None:
    """Raise Changed where a tensor does not fit."""
    param = slot.param.detach()
    states = zip([f"its state {name!r}" for name in slot.names], slot.states, strict=True)
    for subject, tensor in (("it", param), ("its gradient", grad), *states):
        if why := mismatch(tensor, param):
            raise Changed(slot.index, f"{subject} {why}")
        written = tensor is not grad or writes_grad
        if written and tensor.numel() > 1 and span(tensor) < tensor.numel():
            raise Changed(
                slot.index,
                f"{subject} is expanded (unsupported operation: more than one element refers to a "
                "single memory location); clone() it first",
            )
    check_step(slot)
    if not overlap(slot.memory(writes_grad)):
        return
    first, *others = slot.tensors()
    for (one, a), (other, b) in itertools.combinations([first, ("its gradient", grad), *others], 2):
        if share_elements(a, b):
            raise Changed(
                slot.index, f"{other} shares memory with {one}; clone() one of them first"
            )


def check_step(slot: Slot) -> None:
    """Raise Changed where the step count is not one number."""
    step = slot.step
    if step is None:
        return
    if why := not_a_tensor(step):
        raise Changed(slot.index, f"its state 'step' {why}")
    if step.numel() != 1 or step.dtype not in (torch.float32, torch.float64):
        raise Changed(
            slot.index,
            f"its state 'step' has shape {tuple(step.shape)} and dtype {type_name(step.dtype)}; it "
            "must be one float32 or float64 number",
        )


def prepare(slot: Slot, grad: Tensor, writes_grad: bool) -> None:
    """Check the slot's tensors, decide the layout, make room for what must be staged."""
    check_tensors(slot, grad, writes_grad)
    param = slot.param.detach()
    dense = is_dense(param.shape, param.stride())
    layout = param if dense else torch.empty(param.shape, device="meta")
    slot.strides = layout.stride()
    slot.dtypes = tuple(t.dtype for t in (param, grad, *slot.states))
    for tensor in (param, *slot.states):
        seen = tensor
        if not lies_as(tensor, slot.strides):
            seen = torch.empty_strided(
                param.shape, slot.strides, dtype=tensor.dtype, device=param.device
            )
            slot.stages.append((tensor.detach(), seen))
        slot.addresses.append(seen.data_ptr())
    if not lies_as(grad, slot.strides):
        slot.grad_stage = torch.empty_strided(
            param.shape, slot.strides, dtype=grad.dtype, device=param.device
        )
