"""Schedule-free SGD: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import averaged, decayed, lerp
from .rule import Rule


@triton.jit
def sgd_schedulefree(p, g, states, scalars, VARIANT: tl.constexpr):
    weight_decay, average_weight, step_size, lr = scalars
    g = decayed(g, p, weight_decay)
    p = tl.fma(step_size, g, lerp(p, states[0], average_weight))
    return p, (tl.fma(-lr, g, states[0]),)


@triton.jit
def sgd_schedulefree_scalars(hyper, step, first, more):
    lr, momentum, weight_decay, warmup_steps, r, weight_lr_power = hyper
    lr, part, carried = averaged(lr, warmup_steps, r, weight_lr_power, step, more)
    return carried, (weight_decay, part, lr * (momentum * (1 - part) - 1), lr)


RULE = Rule(sgd_schedulefree, sgd_schedulefree_scalars)
