"""Adafactor's update in torch's operations, for GPUs and mixed types: what does not fit, the update
of a stack, all of them. Nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..declared import WHOLE
from .batched import chunks, grouped


class Item(NamedTuple):
    """A parameter with what its step takes."""

    group: dict[str, Any]
    param: Tensor
    state: dict[str, Any]


def unfit(param: Tensor, state: dict[str, Any]) -> str:
    """What is wrong with a parameter's states, or an empty string."""
    for name, shape in WHOLE["adafactor"].shapes(tuple(param.shape)).items():
        held, expected = state[name], param.shape if shape is None else shape
        if not isinstance(held, Tensor) or held.shape != expected or held.device != param.device:
            return f"its state {name!r} must be a tensor of shape {[*expected]} on {param.device}"
    step = state["step"]
    if not isinstance(step, Tensor) or step.numel() != 1:
        return "its state 'step' must be a tensor of one number"
    return ""


def update_stack(items: Sequence[Item]) -> None:
    """Parameters of one group, shape and types. 16 bits are computed in float32."""
    group, like = items[0].group, items[0].param
    grads = [item.param.grad for item in items]
    params, states = [item.param for item in items], [item.state for item in items]
    wide = torch.float64 if like.dtype == torch.float64 else torch.float32
    lr, (eps1, eps2) = group["lr"], group["eps"]
    eps1 = torch.finfo(like.dtype).eps if eps1 is None else eps1
    each = (-1,) + (1,) * like.dim()
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1.0)
    t = torch.stack([step.reshape(()) for step in steps])
    t = t.to(device=like.device, dtype=wide, non_blocking=True).view(each)
    weight, rate = t ** group["beta2_decay"], (t**-0.5).clamp(max=lr)
    p = torch.stack(params).to(wide)
    g = torch.stack([grad for grad in grads if grad is not None]).to(wide)
    size = max(like.numel(), 1) ** 0.5
    over = tuple(range(1, like.dim() + 1))

    def norm(x: Tensor) -> Tensor:
        return torch.linalg.vector_norm(x, dim=over, keepdim=True) if over else x.abs()

    def averaged(name: str, new: Tensor) -> Tensor:
        held = [state[name] for state in states]
        now = torch.stack(held).to(wide).lerp(new, weight)
        torch._foreach_copy_(held, [*now.unbind()])
        return now

    alpha = (norm(p) / size).nan_to_num(nan=eps2, posinf=torch.inf).clamp(min=eps2) * rate
    if like.dim() > 1:
        square = g * g
        row = averaged("row_var", square.mean(dim=-1, keepdim=True))
        col = averaged("col_var", square.mean(dim=-2, keepdim=True))
        del square
        v = row / row.mean(dim=-2, keepdim=True).clamp(min=eps1) * col
    else:
        v = averaged("variance", g * g)
    u = v.clamp(min=eps1 * eps1).rsqrt_().mul_(g)
    clip = (norm(u) / (size * group["d"])).nan_to_num(nan=1.0, posinf=torch.inf).clamp(min=1.0)
    if group["weight_decay"]:
        p = p * (1 - lr * group["weight_decay"])
    u.mul_(alpha / clip)
    p = p + u if group["maximize"] else p - u
    torch._foreach_copy_(params, [*p.unbind()])


def update(items: Sequence[Item], one_by_one: bool) -> None:
    """All parameters, batched by shape: each stack in chunks, so that memory stays bounded."""

    def key(place: int, item: Item) -> tuple[Any, ...]:
        if one_by_one:
            return (place,)
        p, grad = item.param, item.param.grad
        dtypes = tuple(t.dtype for t in item.state.values() if isinstance(t, Tensor))
        shares = item.state["step"].device
        assert grad is not None
        return id(item.group), p.device, p.dtype, grad.dtype, shares, dtypes, p.shape

    for alike in grouped((key(place, item), item) for place, item in enumerate(items)):
        param = alike[0].param
        for chunk in chunks(alike, param.numel(), param.device):
            update_stack(chunk)
