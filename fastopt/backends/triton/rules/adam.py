"""Adam and AdamW: their update and their scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decay_of, decayed, divide, lerp, maximum, power, root
from .rule import Rule


@triton.jit
def adam(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        weight_decay,
        lerp_weight,
        beta2,
        square_weight,
        correction,
        step_size,
        eps,
        eps_in_sqrt,
    ) = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    if VARIANT == 1:
        square = maximum(states[2], exp_avg_sq)
        states = (exp_avg, exp_avg_sq, square)
    else:
        square = exp_avg_sq
        states = (exp_avg, exp_avg_sq)
    denom = divide(root(square + eps_in_sqrt), correction) + eps
    return p - divide(step_size * exp_avg, denom), states


@triton.jit
def adam_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, _amsgrad, decoupled, in_sqrt = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    bias_correction2 = 1 - power(beta2, step)
    step_size = lr / (1 - power(beta1, step))
    inside = tl.where(in_sqrt != 0, eps * bias_correction2, 0.0)
    eps = tl.where(in_sqrt != 0, 0.0, eps)
    root_of = tl.sqrt(bias_correction2)
    return decay, weight_decay, 1 - beta1, beta2, 1 - beta2, root_of, step_size, eps, inside


RULE = Rule(adam, adam_scalars)
