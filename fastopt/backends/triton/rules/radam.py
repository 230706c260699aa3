"""RAdam: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decay_of, decayed, divide, lerp, power, root
from .rule import Rule


@triton.jit
def radam(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        weight_decay,
        lerp_weight,
        beta2,
        square_weight,
        correction1,
        lr,
        correction2_root,
        rectification,
        eps,
    ) = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    # Selected before they meet the average: of both updates at once, sm_100 spilled 8 bytes.
    rate = divide(tl.full(g.shape, 1.0, g.dtype), root(exp_avg_sq) + eps) * correction2_root
    rate = tl.where(rectification != 0, rate, 1.0)
    rectification = tl.where(rectification != 0, rectification, 1.0)
    update = divide(exp_avg, correction1) * lr * rate * rectification
    return p - update, (exp_avg, exp_avg_sq)


@triton.jit
def radam_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    power2 = power(beta2, step)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * power2 / (1 - power2)
    above = tl.where(rho > 5, (rho - 4) * (rho - 2) * rho_inf, 0.0)
    below = tl.where(rho > 5, (rho_inf - 4) * (rho_inf - 2) * rho, 1.0)
    sizes = (1 - beta1, beta2, 1 - beta2, 1 - power(beta1, step), lr)
    rates = (tl.sqrt(1 - power2), tl.sqrt(above / below), eps)
    return (decay, weight_decay) + sizes + rates  # noqa: RUF005


RULE = Rule(radam, radam_scalars)
