"""Schedule-free AdamW in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def adamw_schedulefree(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 0.0025,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    warmup_steps: int = 0,
    r: float = 0.0,
    weight_lr_power: float = 2.0,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of schedule-free AdamW, of y, which the parameter holds::

        s = lr * min(1, t / warmup_steps)
        w = t**r * (the largest s so far)**weight_lr_power
        c = w / (the sum of all w so far)
        v = beta2 * v + (1 - beta2) * g * g
        u = g / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * y
        y = (1 - c) * y + c * z - s * (1 - beta1 * (1 - c)) * u
        z = z - s * u

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `z`, the parameter where it is absent, `exp_avg_sq`, then zero, and the numbers
            `lr_max` and `weight_sum`, each rounded to its own type; absent, they are -1 and 0 (in
            float32; if dtype is exact, in that).
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, warmup_steps, r, weight_lr_power, maximize: as in
            :class:`fastopt.AdamWScheduleFree`.

    Returns:
        The new parameter and the new states.

    Source: A. Defazio et al., "The road less scheduled" (2024).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2 = map(number, betas)
    kept = np.longdouble if a.exact else np.float32
    largest = np.asarray(states.get("lr_max", kept(-1)))
    total = np.asarray(states.get("weight_sum", kept(0)))
    t, size = number(step), number(lr)
    if t <= warmup_steps:
        size = size * (t / number(warmup_steps))
    root = np.sqrt(1 - beta2**t)
    with np.errstate(all="ignore"):
        largest = np.maximum(largest, np.asarray(size, largest.dtype))
        weight = t ** number(r) * number(largest) ** number(weight_lr_power)
        weight = np.asarray(weight, total.dtype)
        total = np.asarray(total + weight)
        c = number(weight) / number(total) if total != 0 else number(0)
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        z = array(states.get("z", p))
        v = array(states.get("exp_avg_sq", a.zeros(p)))
        v = fma(array(1 - beta2) * g, g, array(beta2) * v)
        u = g / (np.sqrt(v) / array(root) + array(eps))
        if weight_decay != 0:
            u = fma(array(weight_decay), p, u)
        p = fma(array(size * (beta1 * (1 - c) - 1)), u, a.lerp(p, z, c))
        z = fma(array(-size), u, z)
        new = {"lr_max": largest, "weight_sum": total, "z": a.store(z), "exp_avg_sq": a.store(v)}
        return a.store(p), new
