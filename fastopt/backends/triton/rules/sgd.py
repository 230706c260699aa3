"""SGD: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decay_of, decayed
from .rule import Rule


@triton.jit
def sgd(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, lr, momentum, grad_weight, weight_decay, nesterov, first = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    if VARIANT == 1:
        buffer = tl.where(first != 0, g, tl.fma(grad_weight, g, momentum * states[0]))
        g = tl.where(nesterov != 0, tl.fma(momentum, buffer, g), buffer)
        states = (buffer,)
    return tl.fma(-lr, g, p), states


@triton.jit
def sgd_scalars(hyper, step, first):
    lr, momentum, dampening, weight_decay, nesterov, decoupled = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    return decay, lr, momentum, 1 - dampening, weight_decay, nesterov, first


RULE = Rule(sgd, sgd_scalars)
