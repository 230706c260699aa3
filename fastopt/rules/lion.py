"""Lion in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def lion(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of Lion::

        p = p * (1 - lr * weight_decay)
        p = p - lr * sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `exp_avg`; zero where it is absent.
        step: not used: Lion counts no steps.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, betas, weight_decay, maximize: as in :class:`fastopt.Lion`.

    Returns:
        The new parameter and the new states.

    Source: X. Chen et al., "Symbolic discovery of optimization algorithms" (2023), algorithm 2.
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    beta1, beta2 = (number(beta) for beta in betas)
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        m = array(states.get("exp_avg", a.zeros(p)))
        p = p * array(1 - number(lr) * number(weight_decay))
        update = fma(array(1 - beta1), g, array(beta1) * m)
        sign = array(update > 0) - array(update < 0)  # 0 for NaN, as torch.sign has it
        m = fma(array(1 - beta2), g, array(beta2) * m)
        return a.store(p - array(lr) * sign), {"exp_avg": a.store(m)}
