"""What a param group asks for of compact formats: whom it suits, what each state is kept in, going
over to it and back, then what all of it weighs.

The formats themselves are the engine's: fastopt/formats.py has them in NumPy, docs/precision.md in
words. A state in codes is two tensors: `exp_avg_codes` in uint8, with the parameter's shape, and
`exp_avg_scale`, a uint8 for each block of it. No `exp_avg` is then there: a loader that converts
dtypes, as torch.distributed.checkpoint's does, would take codes for numbers. A parameter of 16 bits
has its correction beside it in `master_low`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import _core, declared, ranks
from .arguments import setting
from .formats import BLOCK

LOW, CODES, SCALE = "master_low", "_codes", "_scale"
CORRECTIONS = {24: torch.int8, 32: torch.int16}
ASKING = ("state_bits", "master_weight_bits", "stochastic_rounding")
HALVES = (torch.bfloat16, torch.float16)
PLANES = (torch.uint8, torch.int8, torch.int16)  # dtypes that no state of torch's has


# ---- what is asked ----
def asked(group: dict[str, Any]) -> list[str]:
    """The names of the arguments by which a param group asks for compact formats."""
    return [name for name in ASKING if group.get(name)]


def unfit(group: dict[str, Any], param: Tensor) -> str:
    """Why a parameter cannot have what its group asks for, or an empty string."""
    allowed = (torch.float32, *HALVES)
    dtype = str(param.dtype).removeprefix("torch.")
    if asked(group) and param.dtype not in allowed:
        return (
            f"is {dtype}, but {', '.join(asked(group))} are for float32, bfloat16 and float16: "
            "give it a param group without them"
        )
    if group.get("master_weight_bits") and param.dtype not in HALVES:
        return (
            f"is {dtype}, which master_weight_bits={group['master_weight_bits']} has nothing to "
            "add to: it corrects a parameter of bfloat16 or float16. Cast the parameter, or give "
            "it a param group without master_weight_bits"
        )
    return ""


def dtype_of(group: dict[str, Any], param: Tensor, kind: str) -> torch.dtype | None:
    """What a state of a kind is kept in: uint8 for codes, None for whatever torch has it in.

    Codes go by the parameter's global shape, so that no sharding by rows cuts a block or changes
    the choice: rows are whole blocks.
    """
    bits = group.get("state_bits")
    if kind == "exact" and asked(group):
        return torch.float32
    if bits is None:
        return None
    if bits == 16:
        return torch.bfloat16
    large = bits == 8 and param.numel() >= setting(group, "min_8bit_size")
    row = param.shape[1:].numel()
    whole = large and (param.ndim < 2 or row % BLOCK == 0) and ranks.keeps_blocks(param, BLOCK)
    return torch.uint8 if whole else torch.float32


def blocks(param: Tensor) -> tuple[int, ...]:
    """The shape of the scales of a parameter's codes: rows of blocks."""
    row = param.shape[1:].numel()
    if param.ndim > 1 and row % BLOCK == 0:
        return param.shape[0], row // BLOCK
    return (-(-param.numel() // BLOCK),)


# ---- going over ----
def decoded(codes: Tensor, scale: Tensor, kind: str) -> Tensor:
    """A state in codes as float32."""
    planes = [_plane(t) for t in (codes, scale)]
    numbers = _core.decode(_format(kind), planes[0], planes[1], planes[0].size)
    return _like(codes, torch.float32, numbers)


def encoded(x: Tensor, param: Tensor, kind: str, name: str) -> dict[str, Tensor]:
    """A state in codes, rounded to nearest: there is no step to key noise by."""
    numbers = _plane(x.detach().float())
    if kind != "signed" and (numbers < 0).any():
        raise _core.Refused(f"its state {name!r} has negative numbers, which its codes do not")
    words = np.zeros(numbers.size, np.uint32)
    codes, scale = _core.encode(_format(kind), "nearest", numbers, words)
    scales = ranks.zeros_beside(param, blocks(param), torch.uint8)
    _fill(scales, scale)
    return {name + CODES: _like(param, torch.uint8, codes), name + SCALE: scales}


def _plane(t: Tensor) -> np.ndarray[Any, Any]:
    """What this process holds of a tensor, in row-major order."""
    return ranks.local(t).detach().cpu().contiguous().view(-1).numpy()


def _fill(t: Tensor, plane: np.ndarray[Any, Any]) -> None:
    own = ranks.local(t)
    own.copy_(torch.from_numpy(plane).view(own.shape))


def _like(t: Tensor, dtype: torch.dtype, plane: np.ndarray[Any, Any]) -> Tensor:
    made = torch.empty_like(t, dtype=dtype, requires_grad=False)
    _fill(made, plane)
    return made


def _format(kind: str) -> str:
    return "signed8" if kind == "signed" else "positive8"


def new_state(
    group: dict[str, Any],
    param: Tensor,
    kind: str,
    name: str,
    start: float | str | None,
    state: dict[str, Any],
) -> dict[str, Tensor]:
    """A state that has had no step, of a parameter that has others. `start` None: the first step
    writes it; "param": it is what the parameter is, correction included.
    """
    dtype = dtype_of(group, param, kind)
    if isinstance(start, str):
        begun = weight(param, state)
        if dtype == torch.uint8:
            return encoded(begun, param, kind, name)
        return {name: begun.to(dtype or param.dtype, copy=True)}
    if dtype == torch.uint8:
        if start:
            return encoded(torch.full_like(param, start), param, kind, name)
        codes = torch.zeros_like(param, dtype=dtype, requires_grad=False)
        scale = ranks.zeros_beside(param, blocks(param), torch.uint8)
        return {name + CODES: codes, name + SCALE: scale}
    # A momentum buffer begins as the gradient.
    like = param.grad if start is None and param.grad is not None else param
    made = torch.zeros_like(like, dtype=dtype, requires_grad=False)
    if start:
        (torch.view_as_real(made) if made.is_complex() else made).fill_(start)
    return {name: made}


def converted(
    group: dict[str, Any], param: Tensor, rule: str, state: dict[str, Any]
) -> dict[str, Tensor | None]:
    """What of a parameter's state is not kept as its group asks, as it is to be; None where it is
    to go.
    """
    changed: dict[str, Tensor | None] = {}
    for name, kind in declared.kinds(rule, group).items():
        dtype = dtype_of(group, param, kind)
        codes, scale = state.get(name + CODES), state.get(name + SCALE)
        value = state.get(name) if codes is None else codes
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            continue
        if value.shape != param.shape:
            continue  # the step says so
        if codes is None:
            if dtype == torch.uint8 and value.dtype != torch.uint8:
                changed |= encoded(value, param, kind, name) | {name: None}
            elif dtype not in (None, torch.uint8, value.dtype):
                changed[name] = value.to(dtype)
        elif scale is not None and (group.get("state_bits") != 8 or kind == "exact"):
            plain = decoded(value, scale, kind).to(dtype or param.dtype)
            changed |= {name: plain, name + CODES: None, name + SCALE: None}
    low, wanted = state.get(LOW), CORRECTIONS.get(group.get("master_weight_bits") or 0)
    if low is None and wanted:
        changed[LOW] = torch.zeros_like(param, dtype=wanted, requires_grad=False)
    elif low is not None and wanted is None:
        changed[LOW] = None
    elif low is not None and wanted is not None and {low.dtype, wanted} == {*CORRECTIONS.values()}:
        # An int16 counts 2^-16 of a bfloat16's last place, but 2^-15 of a float16's; an int8 2^-8.
        unit = 256 if param.dtype == torch.bfloat16 else 128
        wide = low.float() / unit if wanted == torch.int8 else low.float() * unit
        limits = torch.iinfo(wanted)
        changed[LOW] = wide.round().clamp(limits.min, limits.max).to(wanted)
    return changed


def put(state: dict[str, Any], changed: dict[str, Tensor | None]) -> None:
    for name, value in changed.items():
        if value is None:
            del state[name]
        else:
            state[name] = value


def weight(param: Tensor, state: dict[str, Any]) -> Tensor:
    """A parameter with its correction, in float32; without one, itself."""
    low = state.get(LOW)
    if low is None:
        return param.detach()
    form, bits, rest = _halves(param, low)
    planes = [_plane(t).view(np.uint8) for t in (bits, rest)]
    return _like(
        param,
        torch.float32,
        _core.decode(form, planes[0], planes[1], planes[1].size // rest.itemsize),
    )


def set_weight(param: Tensor, state: dict[str, Any], value: Tensor) -> None:
    """Write a parameter and its correction, to nearest: there is no step to key noise by."""
    low = state.get(LOW)
    if low is None:
        param.copy_(value)
        return
    form, bits, rest = _halves(param, low)
    numbers = _plane(value.float())
    planes = _core.encode(form, "nearest", numbers, np.zeros(numbers.size, np.uint32))
    for plane, to in zip(planes, (bits, rest), strict=True):
        _fill(to, plane.view(np.int16 if to.dtype == torch.int16 else np.int8))


def _halves(param: Tensor, low: Tensor) -> tuple[str, Tensor, Tensor]:
    """The format of a parameter with its correction, and the planes of both."""
    form = {
        (torch.bfloat16, torch.int16): "split16",
        (torch.bfloat16, torch.int8): "split8",
        (torch.float16, torch.int16): "rest16",
        (torch.float16, torch.int8): "rest8",
    }[param.dtype, low.dtype]
    return form, param.detach().view(torch.int16), low.detach()


# ---- what it weighs ----
def bytes_of(group: dict[str, Any], param: Tensor, rule: str) -> dict[str, int]:
    """Bytes that training a parameter takes, by kind: what its states will be is counted, not what
    they now are. Of a DTensor, what this process holds.
    """
    count, own = math.prod(ranks.own_shape(param.shape, param)), param.element_size()
    found = {"weights": count * own, "gradients": count * own}
    if bits := group.get("master_weight_bits"):
        found[LOW] = count * CORRECTIONS[bits].itemsize
    for name, kind in declared.kinds(rule, group).items():
        dtype = dtype_of(group, param, kind)
        found[name] = count * (own if dtype is None else dtype.itemsize)
        if dtype == torch.uint8:
            found[name] += math.prod(ranks.own_shape(blocks(param), param))
    if setting(group, "ema_decay") is not None:
        found["ema"] = count * own
    found |= declared.bytes_of_whole(rule, param, ranks.own_shape(param.shape, param))
    if numbers := declared.numbers(rule, group):
        found["numbers"] = 4 * len(numbers)
    return found
