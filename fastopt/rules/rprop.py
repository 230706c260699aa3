"""Rprop in plain NumPy, with the engine's roundings."""

from __future__ import annotations

import numpy as np

from .arithmetic import Arithmetic, Array


def rprop(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int = 1,
    lr: float = 1e-2,
    etas: tuple[float, float] = (0.5, 1.2),
    step_sizes: tuple[float, float] = (1e-6, 50),
    maximize: bool = False,
    dtype: str = "float32",
    grad_scale: float | None = None,
) -> tuple[Array, dict[str, Array]]:
    """One step of Rprop, element by element::

        d = min(max(d * etas[1], step_sizes[0]), step_sizes[1])            where g * g' > 0
        d = min(max(d * etas[0], step_sizes[0]), step_sizes[1]); g = 0     where g * g' < 0
        p = p - d * sign(g)
        g' = g

    Args:
        p, g: parameter and gradient; see :mod:`fastopt.rules` for the type of arrays.
        states: `prev`, g', zero where it is absent, and `step_size`, d; where it is absent, it is
            lr.
        step: not used: Rprop's step is the same at every count.
        dtype: float32, float64, bfloat16, float16 or exact.
        grad_scale: the gradient is divided by it first.
        lr, etas, step_sizes, maximize: as in :class:`fastopt.Rprop`.

    Returns:
        The new parameter and the new states.

    Source: M. Riedmiller and H. Braun, "A direct adaptive method for faster backpropagation
    learning: the RPROP algorithm" (1993), in the form and with the roundings of torch.optim.Rprop
    (foreach=False).
    """
    a = Arithmetic(dtype)
    array = a.array
    shrink, grow = (array(eta) for eta in etas)
    smallest, largest = (array(size) for size in step_sizes)
    with np.errstate(all="ignore"):
        p, g = array(p), a.gradient(g, maximize, grad_scale)
        prev = array(states.get("prev", a.zeros(p)))
        d = array(states.get("step_size", a.store(a.zeros(p) + array(lr))))
        turn = g * prev
        d = np.where(turn > 0, grow, np.where(turn < 0, shrink, array(1))) * d
        d = np.minimum(np.maximum(d, smallest), largest)
        g = np.where(turn < 0, array(0), g)
        sign = array(g > 0) - array(g < 0)  # 0 for NaN, as torch.sign has it
        return a.store(p - sign * d), {"prev": a.store(g), "step_size": a.store(d)}
