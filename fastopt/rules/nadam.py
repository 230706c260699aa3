"""NAdam in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def nadam(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 2e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0,
    momentum_decay: float = 4e-3,
    decoupled_weight_decay: bool = False,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of NAdam::

        g = g + weight_decay * p                     (p = p * (1 - lr * weight_decay) if decoupled)
        mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2)
        M = M * mu(t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        d = sqrt(v / (1 - beta2**t)) + eps
        p = p - lr * (1 - mu(t)) / (1 - M) * g / d
        p = p - lr * mu(t + 1) / (1 - M * mu(t + 1)) * m / d

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg`, `exp_avg_sq`, absent ones are zero, and `mu_product`, the number M, in
            whose own type its product is rounded; absent, it is 1 (in float32; if dtype is exact,
            in that).
        step: t, which counts from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, eps, weight_decay, momentum_decay, decoupled_weight_decay, maximize: as in
            :class:`fastopt.NAdam`.

    Returns:
        The new parameter and the new states.

    Source: T. Dozat, "Incorporating Nesterov momentum into Adam" (2016); I. Loshchilov and
    F. Hutter, "Decoupled weight decay regularization" (2019); in the form and with the roundings of
    torch.optim.NAdam (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2 = map(number, betas)
    # The scalars of the step: in double, and rounded only where they meet the tensors.
    decay = number(0.96) ** (number(step) * number(momentum_decay))
    decay_next = number(0.96) ** ((number(step) + 1) * number(momentum_decay))
    mu, mu_next = beta1 * (1 - number(0.5) * decay), beta1 * (1 - number(0.5) * decay_next)
    kept = np.asarray(states.get("mu_product", (np.longdouble if a.exact else np.float32)(1)))
    with np.errstate(all="ignore"):
        mu_product = np.asarray(kept * kept.dtype.type(mu))
        product = number(mu_product)
        grad_size = number(lr) * (1 - mu) / (1 - product)
        avg_size = number(lr) * mu_next / (1 - product * mu_next)
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m = array(states.get("exp_avg", a.zeros(p)))
        v = array(states.get("exp_avg_sq", a.zeros(p)))
        if weight_decay != 0 and decoupled_weight_decay:
            p = p * array(1 - number(lr) * number(weight_decay))
        elif weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        m = a.lerp(m, g, 1 - beta1)
        v = fma(array(1 - beta2) * g, g, array(beta2) * v)
        denom = np.sqrt(v / array(1 - beta2 ** number(step))) + array(eps)
        p = p - array(grad_size) * g / denom
        p = p - array(avg_size) * m / denom
        new = {"mu_product": mu_product, "exp_avg": a.store(m), "exp_avg_sq": a.store(v)}
        return a.store(p), new
