"""AdaBelief: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decay_of, decayed, divide, lerp, maximum, power, root
from .rule import Rule


@triton.jit
def adabelief(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, weight_decay, lerp_weight, beta2, square_weight, correction, step_size, eps = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    rest = g - exp_avg
    exp_avg_var = tl.fma(square_weight * rest, rest, beta2 * states[1]) + eps
    if VARIANT == 1:
        square = maximum(states[2], exp_avg_var)
        states = (exp_avg, exp_avg_var, square)
    else:
        square = exp_avg_var
        states = (exp_avg, exp_avg_var)
    denom = divide(root(square), correction) + eps
    return p - divide(step_size * exp_avg, denom), states


@triton.jit
def adabelief_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, _amsgrad, decoupled = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    root_of, step_size = tl.sqrt(1 - power(beta2, step)), lr / (1 - power(beta1, step))
    return decay, weight_decay, 1 - beta1, beta2, 1 - beta2, root_of, step_size, eps


RULE = Rule(adabelief, adabelief_scalars)
