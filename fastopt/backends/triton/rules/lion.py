"""Lion: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .rule import Rule


@triton.jit
def lion(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, lr, beta1, update_weight, beta2, grad_weight = scalars
    update = tl.fma(update_weight, g, beta1 * states[0])
    p = p * decay - tl.where(update > 0, lr, tl.where(update < 0, -lr, 0.0))
    return p, (tl.fma(grad_weight, g, beta2 * states[0]),)


@triton.jit
def lion_scalars(hyper, step, first):
    lr, beta1, beta2, weight_decay = hyper
    return 1 - lr * weight_decay, lr, beta1, 1 - beta1, beta2, 1 - beta2


RULE = Rule(lion, lion_scalars)
