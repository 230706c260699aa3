"""Muon in plain NumPy, in the type of its arrays: without the engine's rounding to bfloat16."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .arithmetic import Array


def muon(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1e-3,
    weight_decay: float = 0.1,
    momentum: float = 0.95,
    nesterov: bool = True,
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.7750, 2.0315),
    eps: float = 1e-7,
    ns_steps: int = 5,
    adjust_lr_fn: str | None = None,
    **_: Any,
) -> tuple[Array, dict[str, Array]]:
    """One step of Muon::

        m = momentum * m + (1 - momentum) * g
        u = momentum * m + (1 - momentum) * g       if nesterov, else u = m
        x = u / max(|u|, eps), transposed where it is tall
        ns_steps times:  s = x x',  x = a * x + (b * s + c * s s) x
        p = p * (1 - lr * weight_decay) - lr * adjusted * x

    Args:
        p, g: parameter and gradient, matrices of float64 where errors are measured against it.
        states: `momentum_buffer`; zero where it is absent.
        step: not used: Muon counts no steps.
        lr, weight_decay, momentum, nesterov, ns_coefficients, eps, ns_steps, adjust_lr_fn: as in
            :class:`fastopt.Muon`.

    Returns:
        The new parameter and the new states.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    m = states.get("momentum_buffer", np.zeros_like(p))
    m = momentum * m + (1 - momentum) * g
    x = momentum * m + (1 - momentum) * g if nesterov else m
    rows, columns = p.shape
    x = x.T if rows > columns else x
    x = x / max(float(np.linalg.norm(x)), eps)
    a, b, c = ns_coefficients
    for _step in range(ns_steps):
        s = x @ x.T
        x = a * x + (b * s + c * (s @ s)) @ x
    adjusted = {
        None: math.sqrt(max(1, rows / columns)),
        "original": math.sqrt(max(1, rows / columns)),
        "match_rms_adamw": 0.2 * math.sqrt(max(rows, columns)),
    }[adjust_lr_fn]
    x = x.T if rows > columns else x
    return p * (1 - lr * weight_decay) - lr * adjusted * x, {"momentum_buffer": m}
