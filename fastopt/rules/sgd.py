"""SGD in plain NumPy, with the engine's roundings."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arithmetic import Arithmetic, Array


def sgd(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1e-3,
    momentum: float = 0,
    dampening: float = 0,
    weight_decay: float = 0,
    nesterov: bool = False,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of stochastic gradient descent::

        g = g + weight_decay * p                 (p = p * (1 - lr * weight_decay) if decoupled)
        b = g                                    at the first step, then
        b = momentum * b + (1 - dampening) * g   (only if momentum != 0)
        g = g + momentum * b if nesterov else b
        p = p - lr * g

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `momentum_buffer`; absent before the first step.
        step: not used: SGD counts no steps.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, momentum, dampening, weight_decay, nesterov, decoupled_weight_decay, maximize: as in
            :class:`fastopt.SGD`.

    Returns:
        The new parameter and the new states.

    Source: I. Sutskever et al., "On the importance of initialization and momentum in deep learning"
    (2013), in the form and with the roundings of torch.optim.SGD (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    new: dict[str, Any] = {}
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        if decoupled_weight_decay:
            p = p * array(1 - number(lr) * number(weight_decay))
        elif weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        if momentum != 0:
            mu, grad_weight = array(momentum), array(1 - number(dampening))
            old = states.get("momentum_buffer")
            b = g if old is None else fma(grad_weight, g, mu * array(old))
            g = fma(mu, b, g) if nesterov else b
            new["momentum_buffer"] = a.store(b)
        return a.store(fma(array(-number(lr)), g, p)), new
