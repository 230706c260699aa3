"""Muon's update in torch's operations: which type the products take, the orthogonalisation of a
stack of matrices, one chunk of parameters, all of them.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .batched import chunks, grouped


@cache
def has_bfloat16_products() -> bool:
    """Whether this CPU has instructions for products of bfloat16, which torch's kernels then use.

    Where it has not, they compute in float32 what they convert on the fly, and products in float32
    are faster: 4 products of 512x512 took 34 ms in bfloat16 against 11 (AVX-512), 800 against 20
    (AVX2: no kernel at all but a loop), one thread of a Xeon held back by ONEDNN_MAX_CPU_ISA; with
    AMX 1.1 ms. By the processor, and not by a measurement, for the same bits in every run.
    """
    if platform.machine() in ("x86_64", "AMD64"):
        names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        return any(getattr(torch.cpu, name, lambda: False)() for name in names)
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False


def product_dtype(device: torch.device) -> torch.dtype:
    """What the products take: numbers of bfloat16 either way, and rounded to it."""
    if device.type != "cpu" or has_bfloat16_products():
        return torch.bfloat16
    return torch.float32


class Polynomial(NamedTuple):
    """The iteration x -> a x + (b g + c g g) x with g = x x', so many times."""

    coefficients: tuple[float, float, float]
    steps: int
    eps: float


class Room(NamedTuple):
    """Buffers for a stack of matrices: two iterates, two squares; `low` where these are float32, to
    round them.
    """

    iterates: tuple[Tensor, Tensor]
    squares: tuple[Tensor, Tensor]
    low: Tensor | None

    @classmethod
    def of(cls, count: int, rows: int, columns: int, device: torch.device) -> Room:
        dtype = product_dtype(device)

        def empty(across: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty(count, rows, across, dtype=dtype, device=device)

        return cls(
            (empty(columns), empty(columns)),
            (empty(rows), empty(rows)),
            None if dtype == torch.bfloat16 else empty(columns, torch.bfloat16),
        )

    def first(self, count: int) -> Room:
        """For so many matrices."""
        low = None if self.low is None else self.low[:count]
        x, y = self.iterates
        g, h = self.squares
        return Room((x[:count], y[:count]), (g[:count], h[:count]), low)

    def round(self, x: Tensor) -> None:
        """To bfloat16, as a product in it is stored."""
        if self.low is not None:
            low = self.low.view(-1)[: x.numel()].view(x.shape)
            x.copy_(low.copy_(x))

    def put(self, updates: Iterable[Tensor]) -> None:
        """The first iterates, transposed where they are tall, in bfloat16."""
        for to, update in zip(self.start, updates, strict=True):
            if update.size(0) <= update.size(1):
                to.copy_(update)
            else:  # rounded first: a transposition that converts is slow
                to.copy_(update.bfloat16().t())

    @property
    def start(self) -> Tensor:
        return self.iterates[0] if self.low is None else self.low


def orthogonalize(room: Room, by: Polynomial) -> Tensor:
    """What was put into the room, orthogonalised: in bfloat16, or numbers of it in float32."""
    x, y = room.iterates
    g, h = room.squares
    start = room.start
    start.div_(torch.linalg.vector_norm(start, dim=(1, 2), keepdim=True).clamp_(min=by.eps))
    if start is not x:
        x.copy_(start)
    a, b, c = by.coefficients
    for _ in range(by.steps):
        torch.bmm(x, x.mT, out=g)
        room.round(g)
        torch.baddbmm(g, g, g, beta=b, alpha=c, out=h)
        room.round(h)
        torch.baddbmm(x, h, x, beta=a, out=y)
        room.round(y)
        x, y = y, x
    return x


def adjusted(lr: float, by: str | None, shape: torch.Size) -> float:
    """The learning rate for a matrix of this shape."""
    rows, columns = shape
    if by is None or by == "original":
        return lr * math.sqrt(max(1, rows / columns))
    return lr * 0.2 * math.sqrt(max(rows, columns)) if by == "match_rms_adamw" else lr


class Item(NamedTuple):
    """A parameter with what its step takes."""

    group: dict[str, Any]
    param: Tensor
    grad: Tensor
    buffer: Tensor


def update_chunk(items: Sequence[Item], room: Room, polynomial: Polynomial) -> None:
    """Parameters of one group, type and shape, but for transposition."""
    params = [item.param for item in items]
    grads, buffers = [item.grad for item in items], [item.buffer for item in items]
    group, lr = items[0].group, float(items[0].group["lr"])
    momentum, nesterov, decay = group["momentum"], group["nesterov"], 1 - lr * group["weight_decay"]
    rates = [-adjusted(lr, group["adjust_lr_fn"], p.shape) for p in params]
    room = room.first(len(items))
    if params[0].device.type != "cpu":
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        room.put(torch._foreach_lerp(grads, buffers, momentum) if nesterov else buffers)
        found = orthogonalize(room, polynomial)
        torch._foreach_mul_(params, decay)
        for places in grouped((rate, i) for i, rate in enumerate(rates)):
            of = [params[i] for i in places]
            updates = [of_shape(found[i], params[i]) for i in places]
            torch._foreach_add_(of, updates, alpha=rates[places[0]])
        return
    # On a CPU one after another: what one operation leaves in the cache, the next one finds.
    scratch = torch.empty_like(grads[0], memory_format=torch.contiguous_format)

    def updates_of() -> Iterator[Tensor]:
        for grad, buffer in zip(grads, buffers, strict=True):
            buffer.lerp_(grad, 1 - momentum)
            ahead = scratch.view(grad.shape)
            yield torch.lerp(grad, buffer, momentum, out=ahead) if nesterov else buffer

    room.put(updates_of())
    found = orthogonalize(room, polynomial)
    for p, x, rate in zip(params, found, rates, strict=True):
        update = of_shape(x, p)
        if p.dtype == scratch.dtype:  # else converted within the sum, in three times the time
            update = scratch.view(p.shape).copy_(update)
        p.mul_(decay).add_(update, alpha=rate)


def of_shape(found: Tensor, param: Tensor) -> Tensor:
    """An orthogonalised matrix, transposed back where the parameter is tall."""
    return found if found.shape == param.shape else found.t().contiguous()


def update(items: Sequence[Item], one_by_one: bool) -> None:
    """All parameters, batched by shape: each stack in chunks, so that memory stays bounded."""

    def key(place: int, item: Item) -> tuple[Any, ...]:
        p, g, m = item.param, item.grad, item.buffer
        if one_by_one:
            return (place,)
        return id(item.group), p.device, p.dtype, g.dtype, m.dtype, *sorted(p.shape)

    for alike in grouped((key(place, item), item) for place, item in enumerate(items)):
        group, param = alike[0].group, alike[0].param
        if not param.numel():
            continue
        rows, columns = sorted(param.shape)
        coefficients = tuple(group["ns_coefficients"])
        polynomial = Polynomial(coefficients, group["ns_steps"], group["eps"])
        room: Room | None = None
        for chunk in chunks(alike, param.numel(), param.device):
            room = room or Room.of(len(chunk), rows, columns, param.device)
            update_chunk(chunk, room, polynomial)
