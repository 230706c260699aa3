"""Adagrad: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decayed, divide, root
from .rule import Rule


@triton.jit
def adagrad(p, g, states, scalars, VARIANT: tl.constexpr):
    lr, weight_decay, eps = scalars
    g = decayed(g, p, weight_decay)
    square_sum = tl.fma(g, g, states[0])
    return p - divide(lr * g, root(square_sum) + eps), (square_sum,)


@triton.jit
def adagrad_scalars(hyper, step, first):
    lr, lr_decay, weight_decay, _initial, eps = hyper
    return lr / (1 + (step - 1) * lr_decay), weight_decay, eps


RULE = Rule(adagrad, adagrad_scalars)
