"""Live: update-to-weight ratios by layer in the terminal, while training runs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .layers import judge
from .stats import Stats

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

# The bar's ends, as powers of ten of the ratio: below is dead, above is exploding.
LOW, HIGH, WIDTH = -7, -1, 18
COLOURS = {"": "green", "dead": "blue", "exploding": "red"}


class Live:
    """A table in the terminal: a line a parameter, a bar of its update-to-weight ratio.

    The bar's scale is logarithmic, from 1e-7 to 1e-1; 1e-3 is marked. Blue is dead, red exploding:
    see :class:`LayerCheck`. Use it as a context:

        with Live() as live, watch(optimizer, live, every=10):
            train()

    Args:
        console: rich's; one of its own by default. Needs rich.
        lines: parameters shown; of more, those furthest from 1e-3.
    """

    def __init__(self, console: Console | None = None, lines: int = 30) -> None:
        from rich.live import Live as Display

        self.lines = lines
        self._display = Display(console=console, auto_refresh=False)

    def __enter__(self) -> Live:
        """Begin to draw."""
        self._display.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Leave the last table standing."""
        self._display.stop()

    def __call__(self, step: int, stats: Stats) -> None:
        """Draw one step."""
        self._display.update(self.table(step, stats), refresh=True)

    def table(self, step: int, stats: Stats) -> Table:
        """One step as rich's table."""
        from rich.table import Table
        from rich.text import Text

        shown = sorted(stats, key=lambda name: -_distance(stats[name]["update_ratio"]))[
            : self.lines
        ]
        table = Table(title=f"step {step}", title_justify="left", box=None, padding=(0, 1))
        table.add_column("parameter", overflow="ellipsis", no_wrap=True)
        for heading in ("gradient", "weights", "ratio"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("1e-7      1e-3  1e-1", no_wrap=True)
        for name, of in stats.items():
            if name in shown:
                colour = COLOURS[judge(of)]
                numbers = (of["grad_norm"], of["weight_norm"], of["update_ratio"])
                bar = Text(_bar(of["update_ratio"]), style=colour)
                table.add_row(name, *(f"{number:.1e}" for number in numbers), bar)
        if len(shown) < len(stats):
            table.caption = f"{len(shown)} of {len(stats)} parameters, those furthest from 1e-3"
        return table


def _distance(ratio: float) -> float:
    """From the usual ratio, in powers of ten."""
    return abs(math.log10(ratio) + 3) if 0.0 < ratio < math.inf else math.inf


def _bar(ratio: float) -> str:
    place = (math.log10(ratio) - LOW) / (HIGH - LOW) if 0.0 < ratio < math.inf else ratio > 0.0
    filled = round(WIDTH * min(1.0, max(0.0, float(place))))
    usual = round(WIDTH * (-3 - LOW) / (HIGH - LOW))
    cells = ["━"] * filled + [" "] * (WIDTH - filled)
    cells[usual] = "╋" if filled > usual else "┆"
    return "".join(cells)
