"""One parameter of a launch: layouts, what is wrong with a tensor, building a slot, collecting it.

A flat kernel goes through memory in order, so all tensors of a parameter must lie alike. Those that
do not (a transposed gradient, a sliced parameter) are staged: copied into a dense layout before the
launch, and copied back after it where the launch writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

# The address of an empty gradient: its step counts, unlike that of a gradient that is None (0).
NOWHERE = 16

PLAIN_TYPES = (Tensor, torch.nn.Parameter)


class Changed(Exception):
    """The parameter `index` (-1: none in particular) is not as planned; nothing was written."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


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
    layer: int = 0  # launched after lower layers, which share its memory
    strides: tuple[int, ...] = ()  # of every tensor the kernel sees
    pointers: list[int] = field(default_factory=list)  # of param and states, as found at planning
    addresses: list[int] = field(default_factory=list)  # of param and states, for the kernel
    stages: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (tensor, its dense copy)
    grad_stage: Tensor | None = None


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


def mismatch(tensor: Tensor, param: Tensor) -> str | None:
    """What is wrong with a gradient or state beside its parameter."""
    if type(tensor) not in PLAIN_TYPES:
        return f"is a {type(tensor).__name__}, not a plain torch.Tensor or torch.nn.Parameter"
    if tensor.device != param.device:
        return (
            f"is on {tensor.device}, the parameter on {param.device}; move it there, as "
            "`model.to(device)` before building the optimizer does"
        )
    for what in ("shape", "dtype"):
        own, expected = getattr(tensor, what), getattr(param, what)
        if own != expected:
            own, expected = (str(x).removeprefix("torch.") for x in (own, expected))
            if what == "shape":
                own, expected = str(tuple(tensor.shape)), str(tuple(param.shape))
            return f"has {what} {own}, the parameter {expected}; they must be equal"
    if tensor.is_conj() or tensor.is_neg():
        return "is a lazy view (is_conj() or is_neg() is true)"
    return None


def prepare(slot: Slot) -> None:
    """Check the slot's tensors, decide the layout, make room for what must be staged."""
    param, grad = slot.param.detach(), slot.param.grad
    tensors = [("it", param), *((f"its state {n!r}", s) for n, s in zip(slot.names, slot.states))]  # noqa: B905
    for subject, tensor in [*tensors, ("its gradient", grad)]:
        if tensor is None:
            raise Changed(slot.index, f"{subject} is missing")
        if why := mismatch(tensor, param):
            raise Changed(slot.index, f"{subject} {why}")
        if tensor is not grad and tensor.numel() > 1 and span(tensor) < tensor.numel():
            raise Changed(
                slot.index,
                f"{subject} is expanded (unsupported operation: more than one element refers to a "
                "single memory location); clone() it first",
            )
    dense = is_dense(param.shape, param.stride())
    layout = param if dense else torch.empty(param.shape, device="meta")
    slot.strides = layout.stride()
    for _, tensor in tensors:
        slot.pointers.append(tensor.data_ptr())
        seen = tensor
        if not lies_as(tensor, slot.strides):
            seen = torch.empty_strided(
                param.shape, slot.strides, dtype=param.dtype, device=param.device
            )
            slot.stages.append((tensor.detach(), seen))
        slot.addresses.append(seen.data_ptr())
    if grad is not None and not lies_as(grad, slot.strides):
        slot.grad_stage = torch.empty_strided(
            param.shape, slot.strides, dtype=param.dtype, device=param.device
        )


def collect(slots: Sequence[Slot], addresses: NDArray[Any]) -> None:
    """Write the address of every gradient, 0 where there is none; raise Changed if unlike the plan.

    Runs once a step for every tensor, so its place is the compiled core: see docs/gpu.md.
    """
    for i, slot in enumerate(slots):
        param = slot.param
        grad = param.grad
        if grad is None:
            addresses[i] = 0
            continue
        if (
            type(grad) not in PLAIN_TYPES
            or grad.dtype != param.dtype
            or grad.shape != param.shape
            or grad.device != param.device
            or grad.layout != torch.strided
            or grad.is_conj()
            or grad.is_neg()
        ):
            raise Changed(slot.index, f"its gradient {mismatch(grad, param) or 'has changed'}")
        kept, pointers = slot.kept, slot.pointers
        if param.data_ptr() != pointers[0]:
            raise Changed(slot.index, "its memory has moved")
        for name, state, pointer in zip(slot.names, slot.states, pointers[1:], strict=True):
            if kept.get(name) is not state or state.data_ptr() != pointer:
                raise Changed(slot.index, f"its state {name!r} has changed")
        if kept.get("step") is not slot.step:
            raise Changed(slot.index, "its state 'step' has changed")
        if slot.grad_stage is not None:
            addresses[i] = slot.grad_stage.data_ptr() or NOWHERE
        elif lies_as(grad, slot.strides):
            addresses[i] = grad.data_ptr() or NOWHERE
        else:
            raise Changed(slot.index, "its gradient's layout has changed")
