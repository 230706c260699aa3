"""ASGD in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def asgd(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    lr: float = 1e-2,
    lambd: float = 1e-4,
    alpha: float = 0.75,
    t0: float = 1e6,
    weight_decay: float = 0,
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of ASGD::

        g = g + weight_decay * p
        p = p * (1 - lambd * eta)
        p = p - eta * g
        ax = ax + mu * (p - ax)
        eta = lr / (1 + lambd * lr * step)**alpha
        mu = 1 / max(1, step - t0)

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `ax`, zero where it is absent, and the numbers `eta` and `mu`, each rounded to its
            own type; absent, they are lr and 1 (in float32; if dtype is exact, in that).
        step: which step this is, from 1.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, lambd, alpha, t0, weight_decay, maximize: as in :class:`fastopt.ASGD`.

    Returns:
        The new parameter and the new states.

    Source: B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging"
    (1992); L. Bottou, "Stochastic gradient descent tricks" (2012); in the form and with the
    roundings of torch.optim.ASGD (foreach=False).
    """
    a = Arithmetic(dtype)
    number, array, fma = a.number, a.array, a.fma
    new = np.longdouble if a.exact else np.float32
    eta, mu = (np.asarray(states.get(k, new(start))) for k, start in (("eta", lr), ("mu", 1)))
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        ax = array(states.get("ax", a.zeros(p)))
        if weight_decay != 0:
            g = fma(array(weight_decay), p, g)
        p = p * array(1 - number(lambd) * number(eta))
        p = fma(array(-eta), g, p)
        ax = p if mu == 1 else ax + (p - ax) * array(mu)
        # Those of the next step: in double, then rounded as they are kept.
        decayed = (1 + number(lambd) * number(lr) * number(step)) ** number(alpha)
        next_eta = np.asarray(number(lr) / decayed, eta.dtype)
        next_mu = np.asarray(1 / max(number(1), number(step) - number(t0)), mu.dtype)
        return a.store(p), {"eta": next_eta, "mu": next_mu, "ax": a.store(ax)}
