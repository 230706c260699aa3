"""RMSprop: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decay_of, decayed, divide, lerp, root
from .rule import Rule


@triton.jit
def rmsprop(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, lr, alpha, square_weight, eps, eps_in_sqrt, weight_decay, momentum = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    square_avg = tl.fma(square_weight * g, g, alpha * states[0])
    if VARIANT >= 2:  # centered
        grad_avg = lerp(states[VARIANT - 1], g, square_weight)
        denom = root(tl.fma(-grad_avg, grad_avg, square_avg) + eps_in_sqrt) + eps
    else:
        denom = root(square_avg + eps_in_sqrt) + eps
    if VARIANT % 2 == 1:  # momentum
        buffer = momentum * states[1] + divide(g, denom)
        p = tl.fma(-lr, buffer, p)
        states = (square_avg, buffer)
    else:
        p = p - divide(lr * g, denom)
        states = (square_avg,)
    if VARIANT >= 2:
        states = states + (grad_avg,)  # noqa: RUF005
    return p, states


@triton.jit
def rmsprop_scalars(hyper, step, first):
    lr, alpha, eps, weight_decay, momentum, _centered, decoupled, in_sqrt = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    inside = tl.where(in_sqrt != 0, eps, 0.0)
    eps = tl.where(in_sqrt != 0, 0.0, eps)
    return decay, lr, alpha, 1 - alpha, eps, inside, weight_decay, momentum


RULE = Rule(rmsprop, rmsprop_scalars)
