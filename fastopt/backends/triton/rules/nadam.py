"""NAdam: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decay_of, decayed, divide, lerp, power, root, rounded
from .rule import Rule


@triton.jit
def nadam(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        weight_decay,
        lerp_weight,
        beta2,
        square_weight,
        correction,
        grad_size,
        avg_size,
        eps,
    ) = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    denom = root(divide(exp_avg_sq, correction)) + eps
    p = p - divide(grad_size * g, denom)
    return p - divide(avg_size * exp_avg, denom), (exp_avg, exp_avg_sq)


@triton.jit
def nadam_momentum(beta1, momentum_decay, step):
    # 0.96**x by its logarithm: x is no integer.
    return beta1 * (1 - 0.5 * tl.exp(step * momentum_decay * -0.040821994520255166))


@triton.jit
def nadam_scalars(hyper, step, first, more):
    lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled = hyper
    mu_product, wide = more[0]
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    mu = nadam_momentum(beta1, momentum_decay, step)
    mu_next = nadam_momentum(beta1, momentum_decay, step + 1)
    mu_product = rounded(mu_product * rounded(mu, wide), wide)
    grad_size = lr * (1 - mu) / (1 - mu_product)
    avg_size = lr * mu_next / (1 - mu_product * mu_next)
    correction = 1 - power(beta2, step)
    sizes = (1 - beta1, beta2, 1 - beta2, correction, grad_size, avg_size, eps)
    return (mu_product,), (decay, weight_decay) + sizes  # noqa: RUF005


RULE = Rule(nadam, nadam_scalars)
