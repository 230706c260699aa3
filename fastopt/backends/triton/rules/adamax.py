"""Adamax: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decayed, divide, lerp, maximum, power
from .rule import Rule


@triton.jit
def adamax(p, g, states, scalars, VARIANT: tl.constexpr):
    weight_decay, lerp_weight, beta2, eps, step_size = scalars
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_inf = maximum(beta2 * states[1], tl.abs(g) + eps)
    return p - divide(step_size * exp_avg, exp_inf), (exp_avg, exp_inf)


@triton.jit
def adamax_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay = hyper
    return weight_decay, 1 - beta1, beta2, eps, lr / (1 - power(beta1, step))


RULE = Rule(adamax, adamax_scalars)
