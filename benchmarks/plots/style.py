"""How every picture looks: themes, colours of contestants and verdicts, the frame with its source.

Colours are Okabe and Ito's, which people with any colour vision tell apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.record import Record


@dataclass(frozen=True)
class Theme:
    """The colours that depend on the background."""

    name: str
    background: str
    ink: str
    faint: str
    ours: str


LIGHT = Theme("light", "#ffffff", "#1f2328", "#8c959f", "#0072b2")
DARK = Theme("dark", "#0d1117", "#e6edf3", "#6e7681", "#56b4e9")

# Others than fastopt and the floor, in the order in which they appear.
OTHERS = ("#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#999999")

BELOW, NOISY, WRONG = "#d55e00", "#cc79a7", "#e3000f"


def verdict_colour(verdict: str, theme: Theme) -> str:
    """Colour of a bar: ours where the goal is reached, another wherever it is not."""
    return {"short": BELOW, "noisy": NOISY, "wrong": WRONG}.get(verdict, theme.ours)


def source(record: Record) -> str:
    """Machine, versions and commit, in one line."""
    machine, versions = record["machine"], record["versions"]
    where = record.get("device", {}).get("name") or (
        f"{machine['cpu']}, {versions.get('isa', '')}, {machine['threads']} threads"
    )
    line = f"{where} | torch {versions['torch']}, fastopt {versions.get('fastopt', '?')}"
    if versions.get("commit"):
        line += f" | {versions['commit'][:9]}"
    if record["settings"].get("quick"):
        line += " | QUICK RUN: times mean nothing"
    return line


def frame(
    record: Record, theme: Theme, title: str, height: float, rows: int = 1, **kw: Any
) -> tuple[Figure, Any]:
    """A figure of this height (inches) with title and source, and its axes or an array of them."""
    look: Any = {
        "font.size": 9,
        "font.family": "sans-serif",
        "figure.facecolor": theme.background,
        "savefig.dpi": 150,
        "axes.facecolor": theme.background,
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color"], theme.ink),
        "axes.edgecolor": theme.faint,
        "grid.color": theme.faint,
        "grid.alpha": 0.3,
        "axes.axisbelow": True,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(look):
        figure = Figure(figsize=(8, height), layout="constrained", dpi=150)
        figure.suptitle(title, fontsize="large", fontweight="bold", x=0.01, ha="left")
        axes = figure.subplots(rows, 1, **kw)
        top = axes if rows == 1 else axes[0]
        top.set_title(source(record), fontsize="x-small", color=theme.faint, loc="left")
        return figure, axes


def legend(axes: Axes, theme: Theme, handles: list[Any] | None = None) -> None:
    """A legend under the axes, where no bar can be behind it."""
    handles = handles or axes.get_legend_handles_labels()[0]
    if handles:
        axes.figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=3,
            fontsize="small",
            frameon=False,
            labelcolor=theme.ink,
        )
