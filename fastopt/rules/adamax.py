"""Adamax in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def adamax(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of Adamax::

        g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        u = max(beta2 * u, abs(g) + eps)
        p = p - lr / (1 - beta1**t) * m / u

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg` and `exp_inf`; absent ones are zero.
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, maximize: as in :class:`fastopt.Adamax`.

    Returns:
        The new parameter and the new states.

    Source: D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015), section
    7.1, in the form and with the roundings of torch.optim.Adamax (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array = a.number, a.array
    beta1, beta2 = map(number, betas)
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m = array(states.get("exp_avg", a.zeros(p)))
        u = array(states.get("exp_inf", a.zeros(p)))
        if weight_decay != 0:
            g = a.fma(array(weight_decay), p, g)
        m = a.lerp(m, g, 1 - beta1)
        u = np.maximum(array(beta2) * u, np.abs(g) + array(eps))
        p = p - array(number(lr) / (1 - beta1 ** number(step))) * m / u
        return a.store(p), {"exp_avg": a.store(m), "exp_inf": a.store(u)}
