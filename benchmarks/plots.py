"""Pictures made from saved records alone: the frame, bars, stacks, curves, what each kind shows.

Colours are Okabe and Ito's, which people with any colour vision tell apart.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure  # not pyplot: no display is wanted, none may exist
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from benchmarks import quality, record
from benchmarks.contestants import FLOOR
from benchmarks.cpu import peer
from benchmarks.method import ratios, spreads
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


def speedup(found: Record, everybody: bool = False) -> Figure | None:
    """The quickest peer's time, or everybody's, over that of fastopt or of a kernel's base."""
    lines: list[dict[str, Any]] = []
    for row in found["rows"]:
        base, goal, missed = row.get("base", "fastopt"), row.get("goal"), row.get("missed", [])
        over = ratios(row["samples"], base)
        names = [name for name in over if name not in (base, FLOOR)]
        if names and not everybody:
            names = [peer(row)]
        label = row["id"].replace("/", "  ")
        for name in names:
            who = name if everybody else name.removeprefix("torch.")
            said = [f"{over[name].median:.2f}x {who}"]
            if goal:
                said.append(f"goal {goal:g}x" + ": BELOW" * ("ratio" in missed))
            said += ["floor goal MISSED"] * ("floor" in missed)
            said += ["noisy"] * (row["verdict"] == "noisy")
            slower = base == "fastopt" and not goal and over[name].median < 1
            colour = VERDICTS.get("short" if slower else row["verdict"], OURS)
            lines.append(
                {"label": label, "text": ", ".join(said)}
                | {"colour": colour, "goal": goal, **vars(over[name])}
            )
        for name in row.get("wrong", []) if everybody or not names else ():
            lines.append({"label": label, "text": f"WRONG RESULT: {name}; not timed"})
    title = "Everybody's time over one" if everybody else "optimizer.step(): speed-up over the peer"
    xlabel = "time / fastopt's or the base's (median; thin line: quartiles; mark: goal)"
    columns = ["label", "median", "q1", "q3", "text", "colour", "goal"]
    drawn = pd.DataFrame(lines, columns=columns).astype(dict.fromkeys(columns[1:4], float))
    return bars(found, title, xlabel, drawn)


def bars(found: Record, title: str, xlabel: str, lines: pd.DataFrame) -> Figure | None:
    """Ratios from 1 on, on a logarithmic axis, with their quartiles; none where one is wrong."""
    if lines.empty:
        return None
    figure, axes = frame(found, title, 1.2 + 0.24 * len(lines))
    goals = lines["goal"].astype(float)
    # Clear of the bar, the quartiles and the goal's mark, whichever reaches furthest.
    furthest = pd.concat([lines["q3"], goals], axis=1).max(axis=1).fillna(1).clip(lower=1)
    for y, line in lines[lines["median"].notna()].iterrows():
        axes.barh(y, line["median"] - 1, left=1, height=0.66, color=line["colour"])
    axes.hlines(lines.index, lines["q1"], lines["q3"], color=INK, linewidth=1.2)
    axes.vlines(goals, lines.index - 0.42, lines.index + 0.42, color=INK, linewidth=2)
    for y, (x, text) in enumerate(zip(furthest, lines["text"], strict=True)):
        colour = WRONG if text.startswith("WRONG") else INK
        axes.text(x * 1.06, y, text, va="center", fontsize="small", color=colour)
    low, top = min(0.8, lines["q1"].min() / 1.2), max(2, furthest.max())
    axes.set(xscale="log", xlim=(low, top * (top / low) ** 0.8), xlabel=xlabel)
    axes.set_yticks(lines.index, lines["label"])
    axes.set_ylim(len(lines) - 0.4, -0.6)  # the first row on top
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(PLAIN)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color=INK, linewidth=1)
    axes.grid(axis="x")
    return figure


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


def endings(found: Record) -> Figure | None:
    """Every format's final losses less float32's: mean, interval, every seed, in its spreads."""
    drawn = [row for row in found["rows"] if "losses" in row and not row["wrong"]]
    if not drawn:
        return None
    lines = [(row, name) for row in drawn for name in row["losses"] if name != quality.REFERENCE]
    title = "Final validation loss against training in float32"
    figure, axes = frame(found, title, 1.6 + 0.22 * len(lines))
    labels, colours = [], {"ok": OURS, **VERDICTS, "short": WRONG}
    for y, (row, name) in enumerate(lines):
        losses = pd.DataFrame(row["losses"])
        base, one = losses[quality.REFERENCE], quality.paired(row["losses"]).loc[name]
        spread = base.std()
        colour = FAINT if name in (quality.NUDGED, quality.CONTROL) else colours[one["verdict"]]
        axes.hlines(y, one["low"] / spread, one["high"] / spread, color=colour, linewidth=4)
        axes.plot(one["mean"] / spread, y, "o", color=colour, markersize=7)
        axes.plot((losses[name] - base) / spread, [y] * len(base), ".", color=INK, markersize=3)
        labels.append(f"{row['work']}  {name}")
    axes.axvspan(-1, 1, color=FAINT, alpha=0.2, lw=0)
    axes.axvline(0, color=INK, linewidth=1)
    for y in range(len(quality.FORMATS) - 1, len(lines), len(quality.FORMATS) - 1):
        axes.axhline(y - 0.5, color=FAINT, linewidth=0.5)
    axes.set(xlabel="difference / float32's deviation over seeds (bar: 95 %, points: seeds)")
    axes.set_yticks(range(len(lines)), labels)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    return figure


def decays(found: Record) -> Figure | None:
    """Second moments after their gradients dropped, against the gradients' scale."""
    drawn = [row for row in found["rows"] if "medians" in row]
    if not drawn:
        return None
    figure, axes = frame(found, "sqrt(v) over its exact value after a tenfold drop", 3.2)
    for row, colour in zip(drawn, (OURS, *OTHERS), strict=False):
        label = f"{row['bits']}-bit states"
        axes.plot(row["scales"], row["medians"], marker=".", color=colour, label=label)
    axes.axhspan(1 - quality.ALLOWED, 1 + quality.ALLOWED, color=FAINT, alpha=0.2, lw=0)
    axes.axhline(1, color=INK, linewidth=1)
    axes.set(xscale="log", xlabel="scale of the gradients before", ylabel="median ratio")
    axes.grid()
    axes.legend(loc="best")
    return figure


# By kind of record, by name of the picture.
FIGURES: dict[str, dict[str, Callable[[Record], Figure | None]]] = {
    "cpu": {"speedup": speedup},
    "tail": {"speedup": speedup},
    "gpu": {"speedup": speedup},
    "peers": {"contestants": partial(speedup, everybody=True)},
    "curves": {sweep: partial(curve, sweep=sweep) for sweep in SWEEPS},
    "micro": {"contestants": partial(speedup, everybody=True)},
    "profile": {"parts": profile},
    "train": {"split": training},
    "quality": {"losses": endings, "decay": decays},
}


def figures(found: Record) -> dict[str, Figure]:
    """What a record has to show, by name."""
    with matplotlib.rc_context(LOOK):
        drawn = {name: draw(found) for name, draw in FIGURES.get(found["kind"], {}).items()}
    return {name: figure for name, figure in drawn.items() if figure}
