"""AdEMAMix: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import divide, lerp, power, root
from .rule import Rule


@triton.jit
def ademamix(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        fast_weight,
        slow_weight,
        beta2,
        square_weight,
        correction,
        fast_size,
        slow_size,
        eps,
    ) = scalars
    fast = lerp(states[0], g, fast_weight)
    slow = lerp(states[1], g, slow_weight)
    mixed = tl.fma(slow_size, slow, fast_size * fast)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[2])
    p = p * decay - divide(mixed, divide(root(exp_avg_sq), correction) + eps)
    return p, (fast, slow, exp_avg_sq)


@triton.jit
def half_life(beta):
    return -0.6931471805599453 / tl.log(beta + 1e-8) - 1


@triton.jit
def ademamix_scalars(hyper, step, first):
    lr, beta1, beta2, beta3, alpha, eps, weight_decay, beta3_warmup, alpha_warmup = hyper
    part = tl.where(step < alpha_warmup, step / tl.maximum(alpha_warmup, 1.0), 1.0)
    along = tl.where(step < beta3_warmup, step / tl.maximum(beta3_warmup, 1.0), 0.0)
    half = (1 - along) * half_life(beta1) + along * half_life(beta3) + 1
    slow = tl.where(step < beta3_warmup, tl.exp(-0.6931471805599453 / half), beta3)
    root_of, fast_size = tl.sqrt(1 - power(beta2, step)), lr / (1 - power(beta1, step))
    sizes = (fast_size, lr * (part * alpha), eps)
    weights = (1 - beta1, 1 - slow, beta2, 1 - beta2, root_of)
    return (1 - lr * weight_decay,) + weights + sizes  # noqa: RUF005


RULE = Rule(ademamix, ademamix_scalars)
