"""Schedule-free SGD in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def sgd_schedulefree(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1.0,
    momentum: float = 0.9,
    weight_decay: float = 0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of schedule-free SGD, of y, which the parameter holds::

        s = lr * min(1, t / warmup_steps)
        w = t**r * (the largest s so far)**weight_lr_power
        c = w / (the sum of all w so far)
        g = g + weight_decay * y
        y = (1 - c) * y + c * z - s * (1 - momentum * (1 - c)) * g
        z = z - s * g

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `z`, the parameter where it is absent, and the numbers `lr_max` and `weight_sum`,
            each rounded to its own type; absent, they are -1 and 0 (in float32; if dtype is exact,
            in that).
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, momentum, weight_decay, warmup_steps, r, weight_lr_power, maximize: as in
            :class:`fastopt.SGDScheduleFree`.

    Returns:
        The new parameter and the new states.

    Source: A. Defazio et al., "The road less scheduled" (2024).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    kept = np.longdouble if a.exact else np.float32
    lr_max = np.asarray(states.get("lr_max", kept(-1)))
    weight_sum = np.asarray(states.get("weight_sum", kept(0)))
    t, size = number(step), number(lr)
    if t <= warmup_steps:
        size = size * (t / number(warmup_steps))
    with np.errstate(all="ignore"):
        lr_max = np.maximum(lr_max, np.asarray(size, lr_max.dtype))
        weight = t ** number(r) * number(lr_max) ** number(weight_lr_power)
        weight = np.asarray(weight, weight_sum.dtype)
        weight_sum = np.asarray(weight_sum + weight)
        c = number(weight) / number(weight_sum) if weight_sum != 0 else number(0)
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        z = array(states.get("z", p))
        if weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        p = fma(array(size * (number(momentum) * (1 - c) - 1)), g, a.lerp(p, z, c))
        z = fma(array(-size), g, z)
        return a.store(p), {"lr_max": lr_max, "weight_sum": weight_sum, "z": a.store(z)}
