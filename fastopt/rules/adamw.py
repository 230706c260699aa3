"""AdamW in plain NumPy: Adam with decoupled weight decay."""

from __future__ import annotations

from typing import Any

from .adam import adam
from .arithmetic import Array


def adamw(
    p: Array,
    g: Array,
    states: dict[str, Array],
    *,
    step: int,
    weight_decay: float = 1e-2,
    decoupled_weight_decay: bool = True,
    **options: Any,
) -> tuple[Array, dict[str, Array]]:
    """One step of AdamW: :func:`adam` with decoupled weight decay and torch's default for it."""
    decoupled = decoupled_weight_decay
    return adam(
        p,
        g,
        states,
        step=step,
        weight_decay=weight_decay,
        decoupled_weight_decay=decoupled,
        **options,
    )
