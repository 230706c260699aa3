"""The passes around an update in plain NumPy, in the order in which they happen: the gradients'
norm and the factor that clips by it, the gradient that the rule is given, the average of weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .arithmetic import Arithmetic, Array

NORM_BLOCK = 1024


def halve(x: Array) -> Array:
    """Add the second half of the first axis to the first half until one is left."""
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return np.asarray(x[0])


def blocks(x: Array) -> Array:
    """A flat array as columns of NORM_BLOCK numbers, filled up with zeros."""
    count = -(-len(x) // NORM_BLOCK)
    filled = np.pad(x, (0, count * NORM_BLOCK - len(x)))
    return np.asarray(filled.reshape(count, NORM_BLOCK).T)


def total_norm(grads: Iterable[Array], grad_scale: float | None = None) -> float:
    """The L2 norm of all gradients together, in double.

    The squares of each gradient's blocks are summed by halving; then all of these sums, in the
    order of the gradients: block k to place k % NORM_BLOCK, and the places by halving.
    """
    with np.errstate(all="ignore"):
        sums = [halve(blocks(np.ravel(g).astype(np.float64) ** 2)) for g in grads]
        every = np.concatenate([np.zeros(NORM_BLOCK), *sums])
        places = np.zeros(NORM_BLOCK)
        for row in blocks(every).T:
            places = places + row
        norm = np.sqrt(halve(places))
        return float(norm if grad_scale is None else norm / grad_scale)


def clip_factor(norm: float, max_grad_norm: float) -> float:
    """What `torch.nn.utils.clip_grad_norm_` multiplies gradients with; NaN for a norm of NaN."""
    factor = max_grad_norm / (norm + 1e-6)
    return 1.0 if factor > 1 else factor


def gradient(
    p: Array,
    g: Array,
    *,
    dtype: str = "float32",
    grad_scale: float | None = None,
    factor: float = 1.0,
    max_grad_value: float | None = None,
    maximize: bool = False,
    l1: float = 0.0,
) -> Array:
    """The gradient that a rule is given, in the type computed in::

    g = g / grad_scale
    g = g * factor                               (of clip_factor)
    g = clamp(g, -max_grad_value, max_grad_value)
    g = -g                                       (only if maximize)
    g = g + l1 * sign(p)
    """
    a = Arithmetic(dtype)
    with np.errstate(all="ignore"):
        g = a.gradient(g, False, grad_scale) * a.array(factor)
        if max_grad_value is not None:
            limit = a.array(max_grad_value)
            g = np.where(g > limit, limit, np.where(g < -limit, -limit, g))
        if maximize:
            g = -g
        if l1 != 0:
            g = g + a.array(l1) * np.sign(np.nan_to_num(a.array(p), nan=0.0))
        return np.asarray(g)


def average(ema: Array | None, p: Array, decay: float, dtype: str = "float32") -> Array:
    """The moving average of a parameter's stored values; it begins as the first of them."""
    a = Arithmetic(dtype)
    with np.errstate(all="ignore"):
        if ema is None:
            return a.array(p)
        return a.store(a.lerp(a.array(ema), a.array(p), 1 - a.number(decay)))
