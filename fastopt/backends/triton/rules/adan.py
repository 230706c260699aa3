"""Adan: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import divide, lerp, power, root
from .rule import Rule


@triton.jit
def adan(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        shrinkage,
        avg_weight,
        diff_weight,
        beta2,
        beta3,
        square_weight,
        correction,
        avg_size,
        diff_size,
        eps,
        first,
    ) = scalars
    diff = tl.where(first != 0, 0.0, g + states[3])
    exp_avg = lerp(states[0], g, avg_weight)
    exp_avg_diff = lerp(states[2], diff, diff_weight)
    ahead = tl.fma(beta2, diff, g)
    exp_avg_sq = tl.fma(square_weight * ahead, ahead, beta3 * states[1])
    denom = divide(root(exp_avg_sq), correction) + eps
    p = p * decay - divide(tl.fma(diff_size, exp_avg_diff, avg_size * exp_avg), denom)
    return p * shrinkage, (exp_avg, exp_avg_sq, exp_avg_diff, -g)


@triton.jit
def adan_scalars(hyper, step, first):
    lr, beta1, beta2, beta3, eps, weight_decay, no_prox = hyper
    decay = tl.where(no_prox != 0, 1 - lr * weight_decay, 1.0)
    shrinkage = tl.where(no_prox != 0, 1.0, 1 / (1 + lr * weight_decay))
    weights = (1 - beta1, 1 - beta2, beta2, beta3, 1 - beta3, tl.sqrt(1 - power(beta3, step)))
    sizes = (lr / (1 - power(beta1, step)), lr * beta2 / (1 - power(beta2, step)), eps)
    return (decay, shrinkage) + weights + sizes + (tl.where(step == 1, 1.0, 0.0),)  # noqa: RUF005


RULE = Rule(adan, adan_scalars)
