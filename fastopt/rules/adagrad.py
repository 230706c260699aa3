"""Adagrad in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def adagrad(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-2,
    lr_decay: float = 0,
    weight_decay: float = 0,
    initial_accumulator_value: float = 0,
    eps: float = 1e-10,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of Adagrad::

        g = g + weight_decay * p
        s = s + g * g
        p = p - lr / (1 + (step - 1) * lr_decay) * g / (sqrt(s) + eps)

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `sum`; where it is absent, it is `initial_accumulator_value`.
        step: which step this is, from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize: as in
            :class:`fastopt.Adagrad`.

    Returns:
        The new parameter and the new states.

    Source: J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization" (2011), in the form and with the roundings of torch.optim.Adagrad
    (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        start = a.store(a.zeros(p) + array(initial_accumulator_value))
        s = array(states.get("sum", start))
        if weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        s = fma(g, g, s)
        clr = array(number(lr) / (1 + (number(step) - 1) * number(lr_decay)))
        p = p - clr * g / (np.sqrt(s) + array(eps))
        return a.store(p), {"sum": a.store(s)}
