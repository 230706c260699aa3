"""Curves: ns per element along a sweep above, the same over the floor's time below."""

from __future__ import annotations

from collections.abc import Callable

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.method import paired, spread
from benchmarks.plots.style import OTHERS, Theme, frame
from benchmarks.record import Record

# Sweeps by what they say of themselves.
SWEEPS = {
    "elements": "Time against the elements of one tensor",
    "tensors": "Time against the number of tensors that hold the same elements",
    "threads": "Time against threads, in memory",
    "threads-cached": "Time against threads, in cache",
    "isa": "Time by instruction set",
}
AXES = {
    "elements": "elements of one tensor",
    "tensors": "tensors",
    "threads": "threads",
    "threads-cached": "threads",
    "isa": "elements of one tensor",
}
# A curve that is this much over the floor has left it.
AT_FLOOR = 1.15


def of(sweep: str) -> Callable[[Record, Theme], Figure | None]:
    """The function that draws one sweep of a record."""
    return lambda record, theme: _draw(record, sweep, theme)


def _draw(record: Record, sweep: str, theme: Theme) -> Figure | None:
    points = [point for point in record["points"] if point["sweep"] == sweep and point["samples"]]
    if not points:
        return None
    settings = record["settings"]
    title = f"{settings['algorithm']} {settings['dtype']}: {SWEEPS[sweep].lower()}"
    figure, (times, ratios) = frame(
        record, theme, title, 5.4, rows=2, sharex=True, height_ratios=[3, 2]
    )
    x = [point["x"] for point in points]
    names = list(points[0]["samples"])
    first = next(name for name in names if name.startswith("fastopt"))
    others = iter(OTHERS)
    for name in names:
        is_floor = name == "floor"
        colour = theme.faint if is_floor else theme.ours if name == first else next(others)
        style = {"color": colour, "linestyle": "--" if is_floor else "-", "marker": "."}
        spreads = [
            spread([s * 1e9 / point["elements"] for s in point["samples"][name]])
            for point in points
        ]
        times.plot(x, [t.median for t in spreads], label=name, **style)
        times.fill_between(
            x, [t.q1 for t in spreads], [t.q3 for t in spreads], color=colour, alpha=0.2, lw=0
        )
        if "floor" in names and not is_floor:
            over = [
                spread(paired(point["samples"][name], point["samples"]["floor"]))
                for point in points
            ]
            ratios.plot(x, [t.median for t in over], **style)
            ratios.fill_between(
                x, [t.q1 for t in over], [t.q3 for t in over], color=colour, alpha=0.2, lw=0
            )
    times.set(yscale="log", ylabel="ns per element")
    times.legend(labelcolor=theme.ink, frameon=False)
    ratios.set(yscale="log", ylabel="time / floor", xlabel=AXES[sweep])
    ratios.axhline(1, color=theme.faint, linestyle="--", linewidth=1)
    ratios.axhspan(1, AT_FLOOR, color=theme.faint, alpha=0.25, lw=0)
    ratios.text(
        1, AT_FLOOR, f"within {AT_FLOOR:g}x ", transform=ratios.get_yaxis_transform(),
        ha="right", va="bottom", fontsize="x-small", color=theme.faint,
    )  # fmt: skip
    if sweep.startswith("threads"):
        ratios.set_xscale("log", base=2)
        ratios.set_xticks(x, [str(value) for value in x])
    else:
        ratios.set_xscale("log")
    plain = FuncFormatter(lambda value, _: f"{value:g}")
    for axes in (times, ratios):
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(plain)
        axes.yaxis.set_minor_formatter(NullFormatter())
    return figure
