"""Adafactor in plain NumPy, in float64 or wider: errors are measured against it."""

from __future__ import annotations

from typing import Any

import numpy as np

from .arithmetic import Array


def adafactor(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1e-2,
    beta2_decay: float = -0.8,
    eps: tuple[float | None, float] = (None, 1e-3),
    d: float = 1.0,
    weight_decay: float = 0.0,
    maximize: bool = False,
    dtype: str = "float32",
    **_: Any,
) -> tuple[Array, dict[str, Array]]:
    """One step of Adafactor::

        alpha = max(eps[1], |p| / sqrt(n)) * min(lr, 1 / sqrt(t)),  w = t ** beta2_decay
        p = p * (1 - lr * weight_decay)
        row = row + w * (mean over each row of g * g - row), col likewise over each column
        v = row * col / max(mean of row, eps[0]); of fewer than two dimensions an average of g * g
        u = g / sqrt(max(v, eps[0]**2))
        p = p - alpha / max(1, |u| / (sqrt(n) * d)) * u

    Args:
        p, g: parameter and gradient; computed is in np.longdouble, whatever they are.
        states: `row_var` and `col_var`, or `variance`; zero where they are absent.
        step: of this update, from 1.
        dtype: how the parameter is stored, whose machine epsilon eps[0] None stands for.
        lr, beta2_decay, eps, d, weight_decay, maximize: as in :class:`fastopt.Adafactor`.

    Returns:
        The new parameter and the new states.

    Source: N. Shazeer and M. Stern, "Adafactor: Adaptive learning rates with sublinear memory cost"
    (2018), with torch's means and its places of eps[0].
    """
    epsilons = {"float32": 2.0**-23, "float64": 2.0**-52, "bfloat16": 2.0**-7, "float16": 2.0**-10}
    wide = np.longdouble
    least = wide(epsilons[dtype] if eps[0] is None else eps[0])
    p, g = np.asarray(p, wide), np.asarray(g, wide)
    size = np.sqrt(wide(p.size))
    weight = wide(step) ** wide(beta2_decay)
    alpha = max(wide(eps[1]), np.sqrt((p * p).sum()) / size) * min(wide(lr), wide(step) ** -0.5)
    p = p * (1 - wide(lr) * wide(weight_decay))
    square = g * g

    def averaged(name: str, new: Array) -> Array:
        old = np.asarray(states.get(name, np.zeros_like(new)), wide)
        return np.asarray(old + weight * (new - old))

    if g.ndim > 1:
        row = averaged("row_var", square.mean(axis=-1, keepdims=True))
        col = averaged("col_var", square.mean(axis=-2, keepdims=True))
        v = row * col / np.maximum(row.mean(axis=-2, keepdims=True), least)
        found = {"row_var": row, "col_var": col}
    else:
        v = averaged("variance", square)
        found = {"variance": v}
    u = g / np.sqrt(np.maximum(v, least * least))
    clip = max(wide(1), np.sqrt((u * u).sum()) / (size * wide(d)))
    change = alpha / clip * u
    return p + change if maximize else p - change, found
