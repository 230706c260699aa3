"""Adadelta: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decayed, divide, root
from .rule import Rule


@triton.jit
def adadelta(p, g, states, scalars, VARIANT: tl.constexpr):
    lr, rho, square_weight, eps, weight_decay = scalars
    g = decayed(g, p, weight_decay)
    square_avg = tl.fma(square_weight * g, g, rho * states[0])
    delta = divide(root(states[1] + eps), root(square_avg + eps)) * g
    acc_delta = tl.fma(square_weight * delta, delta, rho * states[1])
    # As fma(-lr, delta, p), of which ptxas for sm_100 in Triton 3.6 spilled the lr.
    return tl.fma(lr, -delta, p), (square_avg, acc_delta)


@triton.jit
def adadelta_scalars(hyper, step, first):
    lr, rho, eps, weight_decay = hyper
    return lr, rho, 1 - rho, eps, weight_decay


RULE = Rule(adadelta, adadelta_scalars)
