"""An optimizer's memory: all of its tensors, what they share, what a step changed, and copies of
the whole that share as the originals do.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from support import NUMBERS
from torch import Tensor

WIDE = {torch.complex64: torch.complex128, torch.complex128: torch.complex128}


def parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    )


def named_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Parameters, gradients, states, then hyperparameters that are tensors."""
    params = parameters(optimizer)
    for i, p in enumerate(params):
        yield f"parameter {i}", p
        if plain(p.grad):
            yield f"gradient {i}", p.grad
        for key, value in optimizer.state.get(p, {}).items():
            if plain(value):
                yield f"state {key!r} of parameter {i}", value
    for group in optimizer.param_groups:
        for key, value in group.items():
            if plain(value):
                yield key, value


def whole(t: Tensor) -> Tensor:
    """All of the memory that a tensor is a view of, as one flat tensor."""
    count = t.untyped_storage().nbytes() // t.element_size()
    return t.detach().as_strided((count,), (1,), 0)


def places(t: Tensor) -> Tensor:
    """Where in `whole(t)` its elements lie."""
    return (
        torch.arange(len(whole(t))).as_strided(t.size(), t.stride(), t.storage_offset()).flatten()
    )


def share(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have an element in common."""
    if not a.numel() or not b.numel():
        return False
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    return bool(torch.isin(places(a), places(b)).any())


def sharing(tensors: list[Tensor]) -> bool:
    return any(share(a, b) for i, a in enumerate(tensors) for b in tensors[:i])


def streams(optimizer: torch.optim.Optimizer, p: Tensor) -> list[Tensor]:
    """What the update of one parameter reads and writes, but for its numbers."""
    state = optimizer.state.get(p, {})
    return [t for t in (p, p.grad, *(state[k] for k in state if k not in NUMBERS)) if plain(t)]


def tangled(optimizer: torch.optim.Optimizer) -> bool:
    """Whether two streams of one parameter share memory: such a step may be refused."""
    return any(sharing(streams(optimizer, p)) for p in parameters(optimizer))


def apart(optimizer: torch.optim.Optimizer) -> bool:
    """Whether no memory is reached twice."""
    params = parameters(optimizer)
    numbers = [s[k] for s in optimizer.state.values() for k in NUMBERS if plain(s.get(k))]
    return len(set(map(id, params))) == len(params) and not sharing(
        [*chain.from_iterable(streams(optimizer, p) for p in params), *numbers]
    )


def bits(t: Tensor) -> Tensor:
    """A flat tensor as bytes, all NaNs being one."""
    real = torch.view_as_real(t) if t.is_complex() else t
    if real.is_floating_point():
        real = torch.where(real.isnan(), torch.full_like(real, torch.nan), real)
    return real.contiguous().flatten().view(torch.uint8)


class Snapshot:
    """What an optimizer held at one moment, down to the memory between its tensors' elements."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.held = dict(named_tensors(optimizer))
        self.before = {name: whole(t).clone() for name, t in self.held.items()}
        self.options = self.options_of(optimizer)

    @staticmethod
    def options_of(optimizer: torch.optim.Optimizer) -> list[Any]:
        options = [
            {k: repr(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups
        ]
        keys = [
            {k: id(v) if plain(v) else repr(v) for k, v in optimizer.state.get(p, {}).items()}
            for p in parameters(optimizer)
        ]
        return [options, keys]

    def changes(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """What is not as it was: numbers, tensors in place of others, states gained or lost."""
        now = dict(named_tensors(optimizer))
        found = sorted(self.held.keys() ^ now.keys())
        for name, t in now.items():
            if name in self.held:
                if t is not self.held[name]:
                    found.append(f"{name} is another tensor")
                elif not torch.equal(bits(whole(t)), bits(self.before[name])):
                    found.append(f"{name} has other numbers")
        if self.options_of(optimizer) != self.options:
            found.append(f"options or states were {self.options}, are {self.options_of(optimizer)}")
        return found


# Roles that shakes tell apart: parameter, gradient, up to five states, the clipping's factor.
SHAKES = 8
CLIPS = 7


class Copy:
    """Copies of tensors, made at the first call for each, that share memory as the originals do.

    `wide`: in double. `shaken`, from 0 to SHAKES - 1: the numbers of each tensor are all a unit in
    the last place up or all down, by its role among a parameter's. The signs of two roles agree in
    half of the shakes (Walsh functions), so that no sum of two can stand still in all of them.
    """

    def __init__(self, wide: bool = False, shaken: int | None = None) -> None:
        self.wide, self.shaken = wide, shaken
        self.memory: dict[tuple[int, torch.dtype], Tensor] = {}
        self.made: dict[int, tuple[Tensor, Tensor]] = {}  # with the originals: ids stay theirs

    def sign(self, role: int) -> int:
        """1 or -1 where numbers are shaken, else 0."""
        if self.shaken is None:
            return 0
        return (-1) ** bin(self.shaken & role).count("1")

    def __call__(self, t: Tensor, exact: bool = False, role: int = 0) -> Tensor:
        if id(t) not in self.made:
            flat = whole(t)
            key = (flat.data_ptr() if len(flat) else id(t), t.dtype)
            if key not in self.memory:
                self.memory[key] = flat.clone() if exact else self.changed(flat, role)
            view = self.memory[key].as_strided(t.size(), t.stride(), t.storage_offset())
            self.made[id(t)] = (t, view)
        return self.made[id(t)][1]

    def changed(self, flat: Tensor, role: int) -> Tensor:
        dtype = WIDE.get(flat.dtype, torch.float64) if self.wide else flat.dtype
        new = flat.to(dtype, copy=True)
        if self.shaken is not None:
            real = torch.view_as_real(new) if new.is_complex() else new
            real.mul_(1 + self.sign(role) * torch.finfo(flat.dtype).eps)
        return new
