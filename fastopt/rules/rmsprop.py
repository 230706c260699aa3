"""RMSprop in plain NumPy, with the engine's roundings."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arithmetic import Arithmetic, Array


def rmsprop(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum: float = 0,
    centered: bool = False,
    decoupled_weight_decay: bool = False,
    eps_in_sqrt: bool = False,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of RMSprop::

        g = g + weight_decay * p         (p = p * (1 - lr * weight_decay) if decoupled)
        v = alpha * v + (1 - alpha) * g * g
        a = alpha * a + (1 - alpha) * g                   (only if centered)
        d = sqrt(v - a * a if centered else v) + eps      (sqrt(... + eps) if eps_in_sqrt)
        b = momentum * b + g / d; p = p - lr * b          (if momentum > 0)
        p = p - lr * g / d                                (otherwise)

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `square_avg`, `momentum_buffer` if momentum > 0, `grad_avg` if centered; absent ones
            are zero.
        step: not used: RMSprop's update does not depend on it.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, alpha, eps, weight_decay, momentum, centered, decoupled_weight_decay, eps_in_sqrt,
            maximize: as in :class:`fastopt.RMSprop`.

    Returns:
        The new parameter and the new states.

    Source: G. Hinton, lecture 6e of "Neural networks for machine learning" (2012); centered:
    A. Graves, "Generating sequences with recurrent neural networks" (2013); in the form and with
    the roundings of torch.optim.RMSprop (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        v = array(states.get("square_avg", a.zeros(p)))
        if decoupled_weight_decay:
            p = p * array(1 - number(lr) * number(weight_decay))
        elif weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        v = fma(array(1 - number(alpha)) * g, g, array(alpha) * v)
        new: dict[str, Any] = {"square_avg": a.store(v)}
        variance = v
        if centered:
            average = a.lerp(array(states.get("grad_avg", a.zeros(p))), g, 1 - number(alpha))
            variance = fma(-average, average, v)
            new["grad_avg"] = a.store(average)
        denom = np.sqrt(variance + array(eps)) if eps_in_sqrt else np.sqrt(variance) + array(eps)
        if momentum > 0:
            b = array(momentum) * array(states.get("momentum_buffer", a.zeros(p))) + g / denom
            new["momentum_buffer"] = a.store(b)
            return a.store(fma(-array(lr), b, p)), new
        return a.store(p - array(lr) * g / denom), new
