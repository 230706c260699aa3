"""LARS: its update, what it measures, its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import adapts, decayed
from .rule import Rule


@triton.jit
def lars(p, g, states, scalars, VARIANT: tl.constexpr):
    _lr, momentum, weight_decay, nesterov, _trust, _eps, _adapts, rate = scalars
    g = decayed(g, p, weight_decay)
    if VARIANT == 0:
        p = tl.fma(-rate, g, p)
    else:
        buffer = tl.fma(rate, g, momentum * states[0])
        p = p - tl.where(nesterov != 0, tl.fma(rate, g, momentum * buffer), buffer)
        states = (buffer,)
    return p, states


@triton.jit
def lars_measured(p, g, states, scalars, VARIANT: tl.constexpr):
    return g


@triton.jit
def lars_scalars(hyper, step, first):
    lr, momentum, weight_decay, nesterov, trust_coefficient, eps, always_adapt = hyper
    sizes = (lr, momentum, weight_decay, nesterov, trust_coefficient, eps)
    return sizes + (adapts(weight_decay, always_adapt), lr)  # noqa: RUF005


@triton.jit
def lars_completed(weight_norm, norm, scalars):
    lr, _momentum, weight_decay, _nesterov, trust_coefficient, eps, adapts, _rate = scalars
    ratio = trust_coefficient * weight_norm / (norm + weight_decay * weight_norm + eps)
    compares = (adapts != 0) & (weight_norm > 0) & (norm > 0)
    return scalars[:7] + (lr * tl.where(compares, ratio, 1.0),)  # noqa: RUF005


RULE = Rule(lars, lars_scalars, lars_measured, lars_completed)
