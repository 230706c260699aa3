"""Pictures made from saved records alone: the frame, bars, stacks, curves, what each kind shows.

Colours are Okabe and Ito's, which people with any colour vision tell apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure  # not pyplot: no display is wanted, none may exist
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from benchmarks import record
from benchmarks.contestants import FLOOR
from benchmarks.cpu import peer
from benchmarks.method import Spread, ratios, spreads
from benchmarks.profiling import medians, parts
from benchmarks.record import Record
from benchmarks.session import microseconds

INK, FAINT, OURS, WRONG = "#1f2328", "#8c959f", "#0072b2", "#e3000f"
OTHERS = ("#e69f00", "#009e73", "#cc79a7", "#d55e00", "#f0e442", "#999999", "#56b4e9", "#ff9da7")
VERDICTS = {"short": "#d55e00", "noisy": "#cc79a7"}
LOOK: Any = {
    "font.size": 9,
    "savefig.dpi": 150,
    **dict.fromkeys(["text.color", "axes.labelcolor", "xtick.color", "ytick.color"], INK),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right", "legend.frameon"], False),
    "axes.edgecolor": FAINT,
    "grid.color": FAINT,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def frame(found: Record, title: str, height: float, rows: int = 1, **kw: Any) -> tuple[Figure, Any]:
    """A figure of this height (inches) with title and source, and its axes or an array of them."""
    versions = found["versions"]
    source = [record.device(found), f"torch {versions['torch']}, fastopt {versions['fastopt']}"]
    source += [(versions["commit"] or "")[:9]]
    source += ["QUICK RUN: times mean nothing"] * bool(found["settings"].get("quick"))
    figure = Figure(figsize=(8, height), layout="constrained", dpi=150)
    figure.suptitle(title, fontsize="large", fontweight="bold", x=0.01, ha="left")
    axes = figure.subplots(rows, 1, **kw)
    top = axes if rows == 1 else axes[0]
    top.set_title(" | ".join(source), fontsize="x-small", color=FAINT, loc="left")
    return figure, axes


@dataclass(frozen=True)
class Bar:
    """A ratio with its label, what is said of it, and its goal; without a ratio it is wrong."""

    label: str
    ratio: Spread | None
    text: str
    colour: str = OURS
    goal: float | None = None


def bars(found: Record, title: str, xlabel: str, lines: list[Bar]) -> Figure | None:
    """Ratios from 1 on, on a logarithmic axis, with their quartiles."""
    drawn = [bar.ratio for bar in lines if bar.ratio]
    if not lines:
        return None
    figure, axes = frame(found, title, 1.2 + 0.24 * len(lines))
    for y, bar in enumerate(lines):
        if bar.ratio is None:
            axes.text(1.05, y, bar.text, va="center", fontsize="small", color=WRONG)
            continue
        axes.barh(y, bar.ratio.median - 1, left=1, height=0.66, color=bar.colour)
        axes.plot([bar.ratio.q1, bar.ratio.q3], [y, y], color=INK, linewidth=1.2)
        if bar.goal:
            axes.plot([bar.goal] * 2, [y - 0.42, y + 0.42], color=INK, linewidth=2)
        # Clear of the bar, the quartiles and the goal's mark, whichever reaches furthest.
        furthest = max(1, bar.ratio.q3, bar.goal or 1) * 1.06
        axes.text(furthest, y, bar.text, va="center", fontsize="small", color=INK)
    low = min([0.8, *(ratio.q1 / 1.2 for ratio in drawn)])
    top = max([2, *(ratio.q3 for ratio in drawn), *(bar.goal or 1 for bar in lines)])
    axes.set(xscale="log", xlim=(low, top * (top / low) ** 0.8), xlabel=xlabel)
    axes.set_yticks(range(len(lines)), [bar.label for bar in lines])
    axes.set_ylim(len(lines) - 0.4, -0.6)  # the first row on top
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color=INK, linewidth=1)
    axes.grid(axis="x")
    return figure


def speedup(found: Record) -> Figure | None:
    """Peer's time over fastopt's with its goal."""
    lines = []
    for row in found["rows"]:
        label, quickest, goal = row["id"].replace("/", "  "), peer(row), row.get("goal")
        if not quickest:
            who = ", ".join(row.get("wrong", []))
            lines.append(Bar(label, None, f"WRONG RESULT: {who}; not timed"))
            continue
        ratio = ratios(row["samples"], "fastopt")[quickest]
        text = f"{ratio.median:.2f}x {row.get('peer', quickest).removeprefix('torch.')}"
        if goal:
            text += f", goal {goal:g}x" + ": BELOW" * (ratio.median < goal)
        text += ", floor goal MISSED" * ("floor" in row.get("missed", []))
        if row.get("bandwidth_goal"):
            text += f", {row['bandwidth']:.0%} of copy, goal {row['bandwidth_goal']:.0%}"
            text += ": BELOW" * (row["bandwidth"] < row["bandwidth_goal"])
        text += ", noisy" * (row["verdict"] == "noisy")
        lines.append(Bar(label, ratio, text, VERDICTS.get(row["verdict"], OURS), goal))
    xlabel = "peer's time / fastopt's time (median; thin line: quartiles; mark: goal)"
    return bars(found, "optimizer.step(): speed-up over the peer", xlabel, lines)


def contestants(found: Record) -> Figure | None:
    """Everybody's time over that of fastopt, or of a micro-benchmark's base."""
    lines = []
    for row in found["rows"]:
        label, base = row["id"].replace("/", "  "), row.get("base", "fastopt")
        over = ratios(row["samples"], base) if base in row["samples"] else {}
        for name in (name for name in over if name not in (base, FLOOR)):
            text = f"{over[name].median:.2f}x {base}"
            text += ", noisy" * (row["verdict"] == "noisy")
            slower = base == "fastopt" and over[name].median < 1
            colour = VERDICTS["short"] if slower else OURS
            lines.append(Bar(f"{label}   {name}", over[name], text, colour))
        lines += [Bar(f"{label}   {name}", None, "WRONG RESULT") for name in row.get("wrong", [])]
    xlabel = "time / fastopt's or the base's (median; thin line: quartiles)"
    return bars(found, "Everybody's time over one", xlabel, lines)


def stacks(found: Record, title: str, seconds: pd.DataFrame, xlabel: str) -> Figure | None:
    """A bar a line, made of the columns' seconds; the longest bar of each line's group is 1."""
    if seconds.empty:
        return None
    figure, axes = frame(found, title, 1.8 + 0.3 * len(seconds))
    # A part found by subtraction may come out below 0, which the table shows.
    positive = seconds.clip(lower=0)
    longest = positive.sum(axis=1).groupby(level=0, sort=False).transform("max")
    shares = positive.div(longest, axis=0)
    shares.plot.barh(stacked=True, ax=axes, width=0.72, color=[*OTHERS, FAINT], legend=False)
    for y, (of, total) in enumerate(zip(shares.sum(axis=1), seconds.sum(axis=1), strict=True)):
        text = f" {microseconds(total)} us"
        axes.text(of, y, text, va="center", fontsize="x-small", color=INK)
    axes.set_yticks(range(len(seconds)), ["   ".join(filter(None, name)) for name in seconds.index])
    axes.set(xlim=(0, 1.2), xlabel=xlabel, ylabel="")
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    figure.legend(loc="outside lower left", ncols=3, fontsize="small")
    return figure


def profile(found: Record) -> Figure | None:
    """One bar a case, from its smallest parts."""
    seconds = {}
    for row in found["rows"]:
        made = parts(medians(row["samples"]))
        halves = {part.of for part in made}
        of = {part.name: part.seconds for part in made if part.name not in halves}
        seconds[row["id"], ""] = of
    title, xlabel = "Where a step's time goes, hot caches", "share of optimizer.step() (medians)"
    return stacks(found, title, pd.DataFrame(seconds).T, xlabel)


def training(found: Record) -> Figure | None:
    """A bar a contestant: forward and backward, then the update."""
    seconds = {}
    for row in found["rows"]:
        around = spreads(row["around"])
        for name, time in spreads(row["samples"]).items():
            of = {"forward and backward": around[name].median, "optimizer.step()": time.median}
            seconds[row["id"], name] = of
    title = "A training step: forward and backward, update"
    xlabel = "time of the slowest contestant of each row = 100 % (medians)"
    return stacks(found, title, pd.DataFrame(seconds).T, xlabel)


# Sweeps by what they say of themselves, and of their axis.
SWEEPS = {
    "elements": ("the elements of one tensor", "elements of one tensor"),
    "tensors": ("the number of tensors that hold the same elements", "tensors"),
    "threads": ("threads, in memory", "threads"),
    "threads-cached": ("threads, in cache", "threads"),
    "isa": ("elements, by instruction set", "elements of one tensor"),
}
# A curve that is this much over the floor has left it.
AT_FLOOR = 1.15


def curve(found: Record, sweep: str) -> Figure | None:
    """Ns per element along a sweep above, the same over the floor's time below."""
    points = [row for row in found["rows"] if row["sweep"] == sweep and row["samples"]]
    if not points:
        return None
    against, xlabel = SWEEPS[sweep]
    of = {**found["settings"], **points[0]}
    title = f"{of['algorithm']} {of['dtype']}: time against {against}"
    two: dict[str, Any] = {"sharex": True, "height_ratios": [3, 2]}
    figure, (times, over) = frame(found, title, 5.4, rows=2, **two)
    x = [point["x"] for point in points]
    scaled = [pd.DataFrame(point["samples"]) * 1e9 / point["elements"] for point in points]
    names = [name for name in points[0]["samples"] if name != FLOOR]
    colours = dict(zip([*names, FLOOR], (OURS, *OTHERS), strict=False)) | {FLOOR: FAINT}
    for name, colour in colours.items():
        line = {"color": colour, "linestyle": "--" if name == FLOOR else "-", "marker": "."}
        found_times = [spreads(samples)[name] for samples in scaled]
        found_ratios = [ratios(point["samples"], FLOOR)[name] for point in points]
        for axes, values in ((times, found_times), (over, found_ratios)):
            axes.plot(x, [value.median for value in values], label=name, **line)
            low, high = [value.q1 for value in values], [value.q3 for value in values]
            axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    times.set(yscale="log", ylabel="ns per element")
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower left", ncols=5)
    over.set(yscale="log", ylabel="time / floor", xlabel=xlabel, xscale="log")
    over.axhspan(1, AT_FLOOR, color=FAINT, alpha=0.25, lw=0)
    if sweep.startswith("threads"):
        over.set_xticks(x, [str(value) for value in x])
        over.set_xticks([], minor=True)
    for axes in (times, over):
        axes.grid(alpha=0.3)
        axes.yaxis.set_major_formatter(PLAIN)
        axes.yaxis.set_minor_formatter(NullFormatter())
    return figure


# By kind of record, by name of the picture.
FIGURES: dict[str, dict[str, Callable[[Record], Figure | None]]] = {
    "cpu": {"speedup": speedup},
    "tail": {"speedup": speedup},
    "gpu": {"speedup": speedup},
    "peers": {"contestants": contestants},
    "curves": {sweep: partial(curve, sweep=sweep) for sweep in SWEEPS},
    "micro": {"contestants": contestants},
    "profile": {"parts": profile},
    "train": {"split": training},
}


def figures(found: Record) -> dict[str, Figure]:
    """What a record has to show, by name."""
    with matplotlib.rc_context(LOOK):
        drawn = {name: draw(found) for name, draw in FIGURES.get(found["kind"], {}).items()}
    return {name: figure for name, figure in drawn.items() if figure}
