"""Stacked bars: the parts of a step, and a training step's forward+backward beside its update."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from benchmarks.plots.style import OTHERS, Theme, frame, legend
from benchmarks.record import Record

PARTS = ("#56b4e9", "#cc79a7", "#e69f00", "#f0e442", "#d55e00", "#999999", "#ff9da7", "#009e73")


def profile(record: Record, theme: Theme) -> Figure | None:
    """One bar a case, from its smallest parts; 100 % is the whole step."""
    rows = record["rows"]
    if not rows:
        return None
    figure, axes = frame(
        record, theme, "Where a step's time goes, hot caches", 2.6 + 0.45 * len(rows)
    )
    halves = {part["of"] for part in rows[0]["parts"]}
    names = [part["name"] for part in rows[0]["parts"] if part["name"] not in halves]
    for y, row in enumerate(rows):
        left = 0.0
        seconds = {part["name"]: part["seconds"] for part in row["parts"]}
        for name, colour in zip(names, (*PARTS, *OTHERS), strict=False):
            # A part found by subtraction may come out below 0, which the table shows.
            share = max(0.0, seconds[name] / row["seconds"])
            colour = theme.faint if name == "not attributed" else colour
            label = name if y == 0 else None
            axes.barh(y, share, left=left, height=0.62, color=colour, label=label)
            if share > 0.06:
                axes.text(
                    left + share / 2, y, f"{share:.0%}", ha="center", va="center",
                    fontsize="x-small", color="#1f2328",
                )  # fmt: skip
            left += share
        axes.text(
            max(1.0, left) + 0.01,
            y,
            f"{row['seconds'] * 1e6:,.1f} us",
            va="center",
            fontsize="small",
            color=theme.ink,
        )
    axes.set_yticks(range(len(rows)), [row["id"].replace("/", "  ") for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.16), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("share of optimizer.step() (medians)")
    legend(axes, theme)
    return figure


def training(record: Record, theme: Theme) -> Figure | None:
    """A bar a contestant: forward and backward, then the update; 100 % is the slowest."""
    rows = [row for row in record["rows"] if row.get("around_times")]
    if not rows:
        return None
    bars = [(row, name) for row in rows for name in row["times"]]
    height = 1.9 + 0.26 * len(bars) + 0.12 * len(rows)
    figure, axes = frame(record, theme, "A training step: forward and backward, update", height)
    y, last = 0.0, None
    ticks: list[float] = []
    labels: list[str] = []
    for row, name in bars:
        if row is not last:
            y += 0.6 if last else 0
            last = row
            whole = max(
                row["around_times"][other]["median"] + row["times"][other]["median"]
                for other in row["times"]
            )
        around, inside = row["around_times"][name]["median"], row["times"][name]["median"]
        first = not ticks
        axes.barh(
            y, around / whole, height=0.85, color=theme.faint,
            label="forward and backward" if first else None,
        )  # fmt: skip
        ours = name == "fastopt"
        axes.barh(
            y, inside / whole, left=around / whole, height=0.85,
            color=theme.ours if ours else OTHERS[0],
            label=("update by fastopt" if ours else "update by torch.optim")
            if len(ticks) < 2
            else None,
        )  # fmt: skip
        text = f"{around * 1e6:,.0f} + {inside * 1e6:,.0f} us"
        axes.text(1.02, y, text, va="center", fontsize="x-small", color=theme.ink)
        ticks.append(y)
        labels.append(f"{row['id'].replace('/', '  ')}   {name}")
        y += 1
    axes.set_yticks(ticks, labels, fontsize="small")
    axes.set_ylim(y - 0.4, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.set(xlim=(0, 1.25), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("time of the slowest contestant of each row = 100 % (medians)")
    legend(axes, theme)
    return figure
