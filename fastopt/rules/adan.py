"""Adan in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def adan(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_prox: bool = False,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of Adan, with the gradient before this one, h::

        m = beta1 * m + (1 - beta1) * g
        d = beta2 * d + (1 - beta2) * (g - h)        (g - h is 0 in the first step)
        n = beta3 * n + (1 - beta3) * (g + beta2 * (g - h))**2
        u = m / (1 - beta1**t) + beta2 * d / (1 - beta2**t)
        p = p - lr * u / (sqrt(n / (1 - beta3**t)) + eps)
        p = p / (1 + lr * weight_decay)

    With `no_prox`, p is multiplied by 1 - lr * weight_decay first, in place of the last line.

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg`, `exp_avg_sq`, `exp_avg_diff` and `neg_pre_grad`, -h; zero where absent.
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, no_prox, maximize: as in :class:`fastopt.Adan`.

    Returns:
        The new parameter and the new states.

    Source: X. Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
    models" (2022).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2, beta3 = map(number, betas)
    t, decay = number(step), number(lr) * number(weight_decay)
    # The scalars of the step: in double, and rounded only where they meet the tensors.
    size = number(lr) / (1 - beta1**t)
    diff_size = number(lr) * beta2 / (1 - beta2**t)
    root = np.sqrt(1 - beta3**t)
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m, n, d, negative = (
            array(states.get(name, a.zeros(p)))
            for name in ("exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad")
        )
        change = a.zeros(p) if step == 1 else g + negative
        m = a.lerp(m, g, 1 - beta1)
        d = a.lerp(d, change, 1 - beta2)
        ahead = fma(array(beta2), change, g)
        n = fma(array(1 - beta3) * ahead, ahead, array(beta3) * n)
        if no_prox:
            p = p * array(1 - decay)
        u = fma(array(diff_size), d, array(size) * m)
        p = p - u / (np.sqrt(n) / array(root) + array(eps))
        if not no_prox:
            p = p * array(1 / (1 + decay))
        new = {"exp_avg": m, "exp_avg_sq": n, "exp_avg_diff": d, "neg_pre_grad": -g}
        return a.store(p), {name: a.store(x) for name, x in new.items()}
