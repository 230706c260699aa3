"""Rprop: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .rule import Rule


@triton.jit
def rprop(p, g, states, scalars, VARIANT: tl.constexpr):
    etaminus, etaplus, smallest, largest = scalars
    turn = g * states[0]
    size = states[1] * tl.where(turn > 0, etaplus, tl.where(turn < 0, etaminus, 1.0))
    size = tl.where(size < smallest, smallest, size)  # as torch.clamp: NaN stays NaN
    size = tl.where(size > largest, largest, size)
    g = tl.where(turn < 0, 0.0, g)
    return p - tl.where(g > 0, size, tl.where(g < 0, -size, 0.0)), (g, size)


@triton.jit
def rprop_scalars(hyper, step, first):
    _lr, etaminus, etaplus, smallest, largest = hyper
    return etaminus, etaplus, smallest, largest


RULE = Rule(rprop, rprop_scalars)
