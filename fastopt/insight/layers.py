"""Layers that have died or explode: judge, of one step; LayerCheck, of several, warns."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping

from .stats import Stats

# Below half a unit in the last place of float32 (6e-8) an update rounds away.
DEAD = 1e-7
# A hundred times the 1e-3 that is usual (Karpathy, CS231n, "Ratio of weights:updates").
EXPLODING = 0.1


def judge(of: Mapping[str, float], dead: float = DEAD, exploding: float = EXPLODING) -> str:
    """What one step's statistics say of a parameter: dead, exploding or, as "", neither."""
    ratio = of["update_ratio"]
    if of["grad_norm"] == 0.0 or ratio < dead:
        return "dead"
    # Written so that it is also true of what is not a number.
    return "" if ratio <= exploding and math.isfinite(of["grad_norm"]) else "exploding"


class LayerWarning(UserWarning):
    """A parameter has been dead, or has been exploding, for some time."""


class LayerCheck:
    """Warns of a parameter that has been dead or exploding at `patience` looks in a row, once.

    Dead: its gradient is zero, or its update less than `dead` of its weights. Exploding: its update
    is more than `exploding` of its weights, or its gradient is not finite. It warns again after the
    parameter has been well in between. A parameter that begins at zero has large ratios at first
    (1, 1/2, 1/3, ... with Adam), which is what patience is for.

    Args:
        dead, exploding: update-to-weight ratios.
        patience: looks in a row.
    """

    def __init__(
        self, dead: float = DEAD, exploding: float = EXPLODING, patience: int = 20
    ) -> None:
        self.dead, self.exploding, self.patience = dead, exploding, patience
        self._row: Counter[tuple[str, str]] = Counter()

    def __call__(self, step: int, stats: Stats) -> None:
        """Look at one step; warns with :class:`LayerWarning`."""
        for name, of in stats.items():
            found = judge(of, self.dead, self.exploding)
            for other in {"dead", "exploding"} - {found}:
                del self._row[name, other]
            if found:
                self._row[name, found] += 1
            if self._row[name, found] == self.patience:
                self._warn(step, name, found, of)

    def _warn(self, step: int, name: str, found: str, of: Mapping[str, float]) -> None:
        advice = {
            "dead": "no gradient reaches it, or the learning rate or the weights' dtype is too "
            "small for its updates",
            "exploding": "lower the learning rate, warm it up, or clip with max_grad_norm",
        }[found]
        warnings.warn(
            f"{name} is {found} at step {step}, for {self.patience} looks: gradient "
            f"{of['grad_norm']:.2g}, update / weights {of['update_ratio']:.2g} (about 1e-3 is "
            f"usual); {advice}",
            LayerWarning,
            stacklevel=2,
        )
