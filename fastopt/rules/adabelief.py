"""AdaBelief in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def adabelief(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-16,
    weight_decay: float = 0,
    amsgrad: bool = False,
    decoupled_weight_decay: bool = True,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of AdaBelief::

        p = p * (1 - lr * weight_decay)              (g = g + weight_decay * p if not decoupled)
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g - m)**2 + eps
        p = p - lr / (1 - beta1**t) * m / (sqrt(s / (1 - beta2**t)) + eps)

    With `amsgrad`, the maximum of all s so far is in the place of s in the last line.

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg`, `exp_avg_var` and, with `amsgrad`, `max_exp_avg_var`; zero where absent.
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, amsgrad, decoupled_weight_decay, maximize: as in
            :class:`fastopt.AdaBelief`.

    Returns:
        The new parameter and the new states.

    Source: J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed
    gradients" (2020).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2 = map(number, betas)
    # The scalars of the step: in double, and rounded only where they meet the tensors.
    step_size = number(lr) / (1 - beta1 ** number(step))
    root = np.sqrt(1 - beta2 ** number(step))
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m = array(states.get("exp_avg", a.zeros(p)))
        s = array(states.get("exp_avg_var", a.zeros(p)))
        if decoupled_weight_decay:
            p = p * array(1 - number(lr) * number(weight_decay))
        elif weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        m = a.lerp(m, g, 1 - beta1)
        surprise = g - m
        s = fma(array(1 - beta2) * surprise, surprise, array(beta2) * s) + array(eps)
        new, square = {"exp_avg": a.store(m), "exp_avg_var": a.store(s)}, s
        if amsgrad:
            square = np.maximum(array(states.get("max_exp_avg_var", a.zeros(p))), s)
            new["max_exp_avg_var"] = a.store(square)
        denom = np.sqrt(square) / array(root) + array(eps)
        return a.store(p - array(step_size) * m / denom), new
