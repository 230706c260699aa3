"""LARS in plain NumPy, with the engine's roundings."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arithmetic import Arithmetic, Array


def lars(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0,
    nesterov: bool = False,
    trust_coefficient: float = 1e-3,
    eps: float = 0,
    always_adapt: bool = True,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of LARS::

        r = lr * trust_coefficient * ||p|| / (||g|| + weight_decay * ||p|| + eps)
                                                 (lr where one of both norms is 0)
        b = momentum * b + r * (g + weight_decay * p)
        p = p - b                                (the same once more if nesterov)

    Args:
        p, g: a whole parameter and its gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `momentum_buffer`; zero where it is absent.
        step: not used: LARS counts no steps.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, momentum, weight_decay, nesterov, trust_coefficient, eps, always_adapt, maximize: as in
            :class:`fastopt.LARS`.

    Returns:
        The new parameter and the new states.

    Source: Y. You, I. Gitman and B. Ginsburg, "Large batch training of convolutional networks"
    (2017), algorithm 1.
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    new: dict[str, Any] = {}
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        rate = number(lr)
        weight_norm, norm = a.norm(p), a.norm(g)
        if (weight_decay != 0 or always_adapt) and weight_norm > 0 and norm > 0:
            below = norm + number(weight_decay) * weight_norm + number(eps)
            rate = rate * (number(trust_coefficient) * weight_norm / below)
        if weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        if momentum == 0:
            return a.store(fma(array(-rate), g, p)), new
        buffer = array(states.get("momentum_buffer", a.zeros(p)))
        buffer = fma(array(rate), g, array(momentum) * buffer)
        new["momentum_buffer"] = a.store(buffer)
        change = fma(array(rate), g, array(momentum) * buffer) if nesterov else buffer
        return a.store(p - change), new
