"""ASGD: its update and its scalars on the device."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import decayed, rounded
from .rule import Rule


@triton.jit
def asgd(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, eta, mu, weight_decay = scalars
    g = decayed(g, p, weight_decay)
    p = tl.fma(-eta, g, p * decay)
    return p, (tl.where(mu == 1, p, states[0] + (p - states[0]) * mu),)


@triton.jit
def asgd_scalars(hyper, step, first, more):
    lr, lambd, alpha, t0, weight_decay = hyper
    eta, eta_wide = more[0]
    mu, mu_wide = more[1]
    # Those of the next step; a power by its logarithm, as in NAdam.
    next_eta = rounded(lr / tl.exp(alpha * tl.log(1 + lambd * lr * step)), eta_wide)
    next_mu = rounded(1 / tl.maximum(step - t0, 1.0), mu_wide)
    return (next_eta, next_mu), (1 - lambd * eta, eta, mu, weight_decay)


RULE = Rule(asgd, asgd_scalars)
