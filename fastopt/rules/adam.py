"""Adam in plain NumPy, with the engine's roundings."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arithmetic import Arithmetic, Array


def adam(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled_weight_decay: bool = False,
    eps_in_sqrt: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of Adam; with `decoupled_weight_decay`, of AdamW::

        g = g + weight_decay * p                     (p = p * (1 - lr * weight_decay) if decoupled)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        v_max = max(v_max, v), used for v below      (only if amsgrad)
        d = sqrt(v) / sqrt(1 - beta2**t) + eps       (sqrt(v / (1 - beta2**t) + eps) if eps_in_sqrt)
        p = p - lr / (1 - beta1**t) * m / d

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg`, `exp_avg_sq` and, if amsgrad, `max_exp_avg_sq`; absent ones are zero.
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay, eps_in_sqrt: as in
            :class:`fastopt.Adam`.

    Returns:
        The new parameter and the new states.

    Source: D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015); S. Reddi,
    S. Kale and S. Kumar, "On the convergence of Adam and beyond" (2018); I. Loshchilov and
    F. Hutter, "Decoupled weight decay regularization" (2019); in the form and with the roundings of
    torch.optim.Adam (fused=True).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2 = map(number, betas)
    # The scalars of the step: in double, and rounded only where they meet the tensors.
    correction1 = 1 - beta1 ** number(step)
    correction2 = 1 - beta2 ** number(step)
    root = np.sqrt(correction2)
    step_size = number(lr) / correction1
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m = array(states.get("exp_avg", a.zeros(p)))
        v = array(states.get("exp_avg_sq", a.zeros(p)))
        if decoupled_weight_decay:
            p = p * array(1 - number(lr) * number(weight_decay))
        elif weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        m = a.lerp(m, g, 1 - beta1)
        v = fma(array(1 - beta2) * g, g, array(beta2) * v)
        new: dict[str, Any] = {"exp_avg": a.store(m), "exp_avg_sq": a.store(v)}
        if amsgrad:
            v = np.maximum(array(states.get("max_exp_avg_sq", a.zeros(p))), v)
            new["max_exp_avg_sq"] = a.store(v)
        if eps_in_sqrt:
            denom = np.sqrt(v + array(number(eps) * correction2)) / array(root)
        else:
            denom = np.sqrt(v) / array(root) + array(eps)
        return a.store(p - array(step_size) * m / denom), new
