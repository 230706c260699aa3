"""Schedule-free AdamW: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import averaged, decayed, divide, lerp, power, root
from .rule import Rule


@triton.jit
def adamw_schedulefree(p, g, states, scalars, VARIANT: tl.constexpr):
    weight_decay, beta2, square_weight, correction, eps, average_weight, step_size, lr = scalars
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    update = divide(g, divide(root(exp_avg_sq), correction) + eps)
    update = decayed(update, p, weight_decay)
    p = tl.fma(step_size, update, lerp(p, states[0], average_weight))
    return p, (tl.fma(-lr, update, states[0]), exp_avg_sq)


@triton.jit
def adamw_schedulefree_scalars(hyper, step, first, more):
    lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power = hyper
    lr, part, carried = averaged(lr, warmup_steps, r, weight_lr_power, step, more)
    squares = (beta2, 1 - beta2, tl.sqrt(1 - power(beta2, step)), eps)
    sizes = (part, lr * (beta1 * (1 - part) - 1), lr)
    return carried, (weight_decay,) + squares + sizes  # noqa: RUF005


RULE = Rule(adamw_schedulefree, adamw_schedulefree_scalars)
