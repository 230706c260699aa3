"""AdEMAMix in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import math

import numpy as np

from .arithmetic import Arithmetic, Array


def ademamix(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
    alpha: float = 2.0,
    beta3_warmup: int | None = None,
    alpha_warmup: int | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of AdEMAMix::

        p = p * (1 - lr * weight_decay)
        m1 = beta1 * m1 + (1 - beta1) * g
        m2 = beta3(t) * m2 + (1 - beta3(t)) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m1 / (1 - beta1**t) + alpha(t) * m2) / (sqrt(v / (1 - beta2**t)) + eps)

    alpha(t) grows from 0 in a line until step `alpha_warmup`. The half-life of beta3(t) grows so
    from beta1's until step `beta3_warmup`, by the inverse of f(b) = log(1/2) / log(b + 1e-8) - 1.

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg_fast`, `exp_avg_slow` and `exp_avg_sq`; zero where absent.
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, alpha, beta3_warmup, alpha_warmup, eps, weight_decay, maximize: as in
            :class:`fastopt.AdEMAMix`.

    Returns:
        The new parameter and the new states.

    Source: M. Pagliardini, P. Ablin and D. Grangier, "The AdEMAMix optimizer: better, faster,
    older" (2024).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2, beta3 = map(number, betas)
    t = number(step)
    log = np.log if a.exact else math.log
    # The scalars of the step: in double, and rounded only where they meet the tensors.
    mix = number(alpha)
    if alpha_warmup is not None and t < alpha_warmup:
        mix = t / number(alpha_warmup) * mix
    if beta3_warmup is not None and t < beta3_warmup:
        along = t / number(beta3_warmup)
        first, last = (log(number(0.5)) / log(b + number(1e-8)) - 1 for b in (beta1, beta3))
        beta3 = number(0.5) ** (1 / ((1 - along) * first + along * last + 1))
    root = np.sqrt(1 - beta2**t)
    fast_size, slow_size = number(lr) / (1 - beta1**t), number(lr) * mix
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        fast, slow, v = (
            array(states.get(name, a.zeros(p)))
            for name in ("exp_avg_fast", "exp_avg_slow", "exp_avg_sq")
        )
        p = p * array(1 - number(lr) * number(weight_decay))
        fast = a.lerp(fast, g, 1 - beta1)
        slow = a.lerp(slow, g, 1 - beta3)
        v = fma(array(1 - beta2) * g, g, array(beta2) * v)
        mixed = fma(array(slow_size), slow, array(fast_size) * fast)
        p = p - mixed / (np.sqrt(v) / array(root) + array(eps))
        new = {"exp_avg_fast": fast, "exp_avg_slow": slow, "exp_avg_sq": v}
        return a.store(p), {name: a.store(x) for name, x in new.items()}
