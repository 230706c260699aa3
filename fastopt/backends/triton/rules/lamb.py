"""LAMB: its update, what it measures, its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import adapts, decayed, divide, lerp, power, root
from .rule import Rule


@triton.jit
def lamb_moments(p, g, states, scalars):
    _lr, lerp_weight, beta2, square_weight, avg_scale, correction, eps, weight_decay, _ratio = (
        scalars
    )
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    denom = divide(root(exp_avg_sq), correction) + eps
    update = divide(avg_scale * exp_avg, denom)
    return decayed(update, p, weight_decay), (exp_avg, exp_avg_sq)


@triton.jit
def lamb(p, g, states, scalars, VARIANT: tl.constexpr):
    update, states = lamb_moments(p, g, states, scalars)
    return tl.fma(-scalars[0], scalars[8] * update, p), states


@triton.jit
def lamb_measured(p, g, states, scalars, VARIANT: tl.constexpr):
    update, states = lamb_moments(p, g, states, scalars)
    return update


@triton.jit
def lamb_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, corrects, always_adapt = hyper
    avg_scale = tl.where(corrects != 0, 1 / (1 - power(beta1, step)), 1.0)
    correction = tl.where(corrects != 0, tl.sqrt(1 - power(beta2, step)), 1.0)
    sizes = (lr, 1 - beta1, beta2, 1 - beta2, avg_scale, correction, eps)
    return sizes + (weight_decay, adapts(weight_decay, always_adapt))  # noqa: RUF005


@triton.jit
def lamb_completed(weight_norm, norm, scalars):
    compares = (scalars[8] != 0) & (weight_norm > 0) & (norm > 0)
    return scalars[:8] + (tl.where(compares, weight_norm / norm, 1.0),)  # noqa: RUF005


RULE = Rule(lamb, lamb_scalars, lamb_measured, lamb_completed)
