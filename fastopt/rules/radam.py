"""RAdam in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def radam(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of RAdam::

        g = g + weight_decay * p             (p = p * (1 - lr * weight_decay) if decoupled)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        M = 2 / (1 - beta2) - 1              (the greatest length of the average v)
        L = M - 2 * t * beta2**t / (1 - beta2**t)
        r = sqrt((L - 4) * (L - 2) * M / ((M - 4) * (M - 2) * L))
        u = lr * m / (1 - beta1**t)
        p = p - u * sqrt(1 - beta2**t) / (sqrt(v) + eps) * r         (if L > 5)
        p = p - u                                                    (otherwise)

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg` and `exp_avg_sq`; absent ones are zero.
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, decoupled_weight_decay, maximize: as in
            :class:`fastopt.RAdam`.

    Returns:
        The new parameter and the new states.

    Source: L. Liu et al., "On the variance of the adaptive learning rate and beyond" (2020),
    algorithm 2; I. Loshchilov and F. Hutter, "Decoupled weight decay regularization" (2019); in the
    form and with the roundings of torch.optim.RAdam (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2 = map(number, betas)
    # The scalars of the step: in double, and rounded only where they meet the tensors.
    t = number(step)
    correction = 1 - beta2**t
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / correction
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m = array(states.get("exp_avg", a.zeros(p)))
        v = array(states.get("exp_avg_sq", a.zeros(p)))
        if weight_decay != 0 and decoupled_weight_decay:
            p = p * array(1 - number(lr) * number(weight_decay))
        elif weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        m = a.lerp(m, g, 1 - beta1)
        v = fma(array(1 - beta2) * g, g, array(beta2) * v)
        update = m / array(1 - beta1**t) * array(lr)
        if length > 5:
            above = (length - 4) * (length - 2) * longest
            below = (longest - 4) * (longest - 2) * length
            rate = array(1) / (np.sqrt(v) + array(eps)) * array(correction**0.5)
            update = update * rate * array((above / below) ** 0.5)
        return a.store(p - update), {"exp_avg": a.store(m), "exp_avg_sq": a.store(v)}
