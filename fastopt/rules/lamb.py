"""LAMB in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def lamb(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0,
    bias_correction: bool = True,
    always_adapt: bool = True,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of LAMB::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        u = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * p
        p = p - lr * ||p|| / ||u|| * u       (p - lr * u where one of both norms is 0)

    Args:
        p, g: a whole parameter and its gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg` and `exp_avg_sq`; zero where they are absent.
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, bias_correction, always_adapt, maximize: as in
            :class:`fastopt.LAMB`.

    Returns:
        The new parameter and the new states.

    Source: Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes"
    (2020), algorithm 2.
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2 = map(number, betas)
    correction1 = correction2 = number(1)
    if bias_correction:
        correction1, correction2 = 1 - beta1 ** number(step), 1 - beta2 ** number(step)
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m = a.lerp(array(states.get("exp_avg", a.zeros(p))), g, 1 - beta1)
        v = array(states.get("exp_avg_sq", a.zeros(p)))
        v = fma(array(1 - beta2) * g, g, array(beta2) * v)
        denom = np.sqrt(v) / array(np.sqrt(correction2)) + array(eps)
        update = array(1 / correction1) * m / denom
        if weight_decay != 0:
            update = fma(array(weight_decay), p, update)
        ratio = number(1)
        weight_norm, norm = a.norm(p), a.norm(update)
        if (weight_decay != 0 or always_adapt) and weight_norm > 0 and norm > 0:
            ratio = weight_norm / norm
        p = fma(array(-number(lr)), array(ratio) * update, p)
        return a.store(p), {"exp_avg": a.store(m), "exp_avg_sq": a.store(v)}
