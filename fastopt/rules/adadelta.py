"""Adadelta in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def adadelta(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1.0,
    rho: float = 0.9,
    eps: float = 1e-6,
    weight_decay: float = 0,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of Adadelta::

        g = g + weight_decay * p
        v = rho * v + (1 - rho) * g * g
        d = sqrt(u + eps) / sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d * d
        p = p - lr * d

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: v and u, `square_avg` and `acc_delta`; absent ones are zero.
        step: not used: Adadelta's update does not depend on it.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, rho, eps, weight_decay, maximize: as in :class:`fastopt.Adadelta`.

    Returns:
        The new parameter and the new states.

    Source: M. D. Zeiler, "ADADELTA: an adaptive learning rate method" (2012), in the form and with
    the roundings of torch.optim.Adadelta (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        v = array(states.get("square_avg", a.zeros(p)))
        u = array(states.get("acc_delta", a.zeros(p)))
        if weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        square_weight = array(1 - number(rho))
        v = fma(square_weight * g, g, array(rho) * v)
        d = np.sqrt(u + array(eps)) / np.sqrt(v + array(eps)) * g
        u = fma(square_weight * d, d, array(rho) * u)
        p = fma(-array(lr), d, p)
        return a.store(p), {"square_avg": a.store(v), "acc_delta": a.store(u)}
