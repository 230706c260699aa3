"""Bars, one a row: speed-up with its goal, achieved bandwidth, kernels and parts of a step."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, PercentFormatter

from benchmarks.plots.style import BELOW, NOISY, OTHERS, WRONG, Theme, frame, legend, verdict_colour
from benchmarks.record import Record

LINE = 0.3  # inches a row


def _label(row: Record) -> str:
    return str(row["id"]).replace("/", "  ")


def _times(value: float, _: Any = None) -> str:
    return f"{value:g}x"


def _rows_down(axes: Any, labels: list[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first row on top
    axes.tick_params(axis="y", length=0)


def speedup(record: Record, theme: Theme) -> Figure | None:
    """Peer's time over fastopt's, with quartiles and the goal, on a logarithmic axis."""
    rows = record["rows"]
    if not rows:
        return None
    figure, axes = frame(
        record, theme, "optimizer.step(): speed-up over the peer", 1.7 + LINE * len(rows)
    )
    ratios = [row.get("ratio") for row in rows]
    top = max(
        [2.0]
        + [ratio["q3"] for ratio in ratios if ratio]
        + [row["goal"] for row in rows if row.get("goal")]
    )
    low = min([0.8] + [ratio["q1"] / 1.2 for ratio in ratios if ratio])
    axes.set(xscale="log", xlim=(low, top * 16))
    for y, (row, ratio) in enumerate(zip(rows, ratios, strict=True)):
        colour = verdict_colour(row["verdict"], theme)
        goal = row.get("goal")
        if not ratio:
            who = ", ".join(row.get("wrong", [])) or "nobody"
            axes.text(1.05, y, f"WRONG RESULT: {who}; not timed", va="center", color=WRONG)
            continue
        axes.barh(y, ratio["median"] - 1, left=1, height=0.62, color=colour)
        axes.plot([ratio["q1"], ratio["q3"]], [y, y], color=theme.ink, linewidth=1.2)
        text = f"{ratio['median']:.2f}x {row.get('peer', '').removeprefix('torch.')}".rstrip()
        if goal:
            axes.plot([goal, goal], [y - 0.42, y + 0.42], color=theme.ink, linewidth=2)
            text += f", goal {goal:g}x"
            text += ": BELOW" if ratio["median"] < goal else ""
        text += ", floor goal MISSED" if "floor" in row.get("missed", []) else ""
        if row.get("bandwidth_goal"):
            text += f", {row['bandwidth']:.0%} of copy, goal {row['bandwidth_goal']:.0%}"
            text += ": BELOW" if row["bandwidth"] < row["bandwidth_goal"] else ""
        text += ", noisy" if row["verdict"] == "noisy" else ""
        # Clear of the bar, the quartiles and the goal's mark, whichever reaches furthest.
        furthest = max(1, ratio["q3"], ratio["median"], goal or 1)
        axes.text(furthest * 1.06, y, text, va="center", fontsize="small", color=theme.ink)
    axes.axvline(1, color=theme.faint, linewidth=1)
    _rows_down(axes, [_label(row) for row in rows])
    axes.xaxis.set_major_formatter(FuncFormatter(_times))
    ticks = [tick for tick in (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= tick <= top * 2]
    axes.set_xticks(ticks)
    axes.set_xticks([], minor=True)
    axes.set_xlabel("peer's time / fastopt's time (median; thin line: quartiles; mark: goal)")
    axes.grid(axis="x")
    _verdict_legend(axes, rows, theme)
    return figure


def _verdict_legend(axes: Any, rows: list[Record], theme: Theme) -> None:
    seen = {row["verdict"] for row in rows}
    names = {
        "ok": ("reaches its goal", theme.ours),
        "right": ("quick run", theme.ours),
        "short": ("below a goal", BELOW),
        "noisy": ("noisy: claims nothing", NOISY),
    }
    handles = [Patch(color=colour, label=text) for v, (text, colour) in names.items() if v in seen]
    legend(axes, theme, handles)


def roofline(record: Record, theme: Theme) -> Figure | None:
    """The floor's time over each contestant's: 100 % moves its bytes as quickly as memory can."""
    rows = [row for row in record["rows"] if "floor" in row.get("times", {})]
    if not rows:
        return None
    figure, axes = frame(
        record, theme, "Achieved bandwidth, in parts of the floor's", 1.9 + LINE * len(rows)
    )
    names = list(dict.fromkeys(name for row in rows for name in row["times"]))
    others = [name for name in names if name not in ("fastopt", "floor")]
    for y, row in enumerate(rows):
        times = {name: time["median"] for name, time in row["times"].items()}
        share = times["floor"] / times["fastopt"]
        misses = "floor" in row.get("missed", [])
        colour = BELOW if misses else theme.ours
        axes.barh(y, share, height=0.62, color=colour, label="fastopt" if y == 0 else None)
        moved = row["bytes_per_param"] * row["elements"] / times["fastopt"] * 1e-9
        text = f"{share:.0%}, {moved:.1f} GB/s"
        if row.get("floor_goal"):
            goal = 1 / row["floor_goal"]
            axes.plot([goal, goal], [y - 0.42, y + 0.42], color=theme.ink, linewidth=2)
            text += f" (goal {goal:.0%})"
        text += "  BELOW ITS GOAL" if misses else ""
        for k, name in enumerate(others):
            if name in times:
                axes.plot(
                    times["floor"] / times[name],
                    y,
                    marker="os^Dv*"[k % 6],
                    linestyle="",
                    markersize=5,
                    color=OTHERS[k % len(OTHERS)],
                    markeredgecolor=theme.background,
                    markeredgewidth=0.6,
                    zorder=3,
                )
        axes.text(1.14, y, text, va="center", fontsize="small", color=theme.ink)
    for k, name in enumerate(others):
        axes.plot([], [], "os^Dv*"[k % 6], color=OTHERS[k % len(OTHERS)], label=name)
    axes.axvline(1, color=theme.ink, linewidth=1, linestyle="--", label="floor: a bare stream")
    axes.plot([], [], "|", markersize=10, markeredgewidth=2, color=theme.ink, label="goal")
    _rows_down(axes, [_label(row) for row in rows])
    axes.set(xlim=(0, 1.65), xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel("floor's time / contestant's time, same bytes (medians)")
    axes.grid(axis="x")
    legend(axes, theme)
    return figure


def _grouped(
    record: Record, theme: Theme, rows: list[Record], title: str, named: bool
) -> Figure | None:
    """A row's contestants under each other, as times over the row's base, with their own times.

    `named`: every bar has its label; otherwise every row has, and contestants have colours.
    """
    rows = [row for row in rows if row.get("of_base")]
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row["of_base"]))
    colours = dict.fromkeys(names, theme.ours)
    if not named:
        colours = dict(zip(names, (theme.ours, *OTHERS), strict=False))
    lines = [(row, name) for row in rows for name in row["of_base"]]
    figure, axes = frame(record, theme, title, 1.7 + 0.19 * len(lines) + 0.08 * len(rows))
    furthest = max(row["of_base"][name]["median"] for row, name in lines)
    lowest = min(row["of_base"][name]["median"] for row, name in lines)
    left = min(0.5, lowest / 2)
    y, ticks, labels = 0.0, [], []
    for row in rows:
        first = y
        for name in row["of_base"]:
            ratio = row["of_base"][name]
            axes.barh(y, ratio["median"] - left, left=left, height=0.85, color=colours[name])
            axes.plot([ratio["q1"], ratio["q3"]], [y, y], color=theme.ink, linewidth=1)
            ns = row["times"][name]["median"] * 1e9 / row["units"]
            text = f"{ratio['median']:.2f}  {ns:,.3g} ns/{row['unit']}"
            text += "  noisy" if row["verdict"] == "noisy" else ""
            at = max(ratio["median"], ratio["q3"])
            axes.text(at * 1.06, y, text, va="center", fontsize="x-small", color=theme.ink)
            y += 1
            if named:
                ticks.append(y - 1)
                labels.append(f"{name} / {row['base']}")
        if not named:
            ticks.append((first + y - 1) / 2)
            labels.append(f"{_label(row)} / {row['base']}")
        y += 0.45
    axes.set_yticks(ticks, labels, fontsize="small")
    axes.set_ylim(y - 0.7, -0.8)
    axes.tick_params(axis="y", length=0)
    axes.set(xscale="log", xlim=(left, furthest * 15))
    axes.axvline(1, color=theme.ink, linewidth=1, linestyle="--")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("time / base's time (median; thin line: quartiles)")
    axes.grid(axis="x")
    if not named:
        legend(axes, theme, [Patch(color=colours[name], label=name) for name in names])
    return figure


def peers(record: Record, theme: Theme) -> Figure | None:
    """Every contestant's time over fastopt's; who is wrong or failed is named in his place."""
    rows = [row for row in record["rows"] if row.get("ratios")]
    if not rows:
        return None
    lines: list[tuple[Record, str]] = []
    for row in rows:
        ratios = row["ratios"]
        lines += [(row, name) for name in sorted(ratios, key=lambda n: float(ratios[n]["median"]))]
        lines += [(row, name) for name in row.get("wrong", [])]
    height = 1.7 + 0.22 * len(lines) + 0.1 * len(rows)
    figure, axes = frame(record, theme, "Everybody's time over fastopt's", height)
    furthest = max(row["ratios"][name]["q3"] for row, name in lines if name in row["ratios"])
    lowest = min(row["ratios"][name]["q1"] for row, name in lines if name in row["ratios"])
    y, last = 0.0, None
    ticks: list[float] = []
    labels: list[str] = []
    for row, name in lines:
        if row is not last:
            y += 0.5 if last else 0
            last = row
        ratio = row["ratios"].get(name)
        if ratio:
            slower = ratio["median"] < 1
            median = ratio["median"]
            axes.barh(y, median - 1, left=1, height=0.8, color=BELOW if slower else theme.ours)
            axes.plot([ratio["q1"], ratio["q3"]], [y, y], color=theme.ink, linewidth=1)
            text = f"{median:.2f}x  {row['times'][name]['median'] * 1e6:,.0f} us"
            text += ": fastopt is SLOWER" if slower else ""
            axes.text(
                max(1, ratio["q3"]) * 1.05,
                y,
                text,
                va="center",
                fontsize="x-small",
                color=theme.ink,
            )
        else:
            axes.text(
                1.05, y, "wrong result: not timed", va="center", fontsize="x-small", color=WRONG
            )
        ticks.append(y)
        labels.append(f"{_label(row)}   {name}")
        y += 1
    axes.set_yticks(ticks, labels, fontsize="small")
    axes.set_ylim(y - 0.4, -0.7)
    axes.tick_params(axis="y", length=0)
    axes.set(xscale="log", xlim=(min(0.8, lowest / 1.2), furthest * 5))
    axes.axvline(1, color=theme.ink, linewidth=1, linestyle="--")
    axes.xaxis.set_major_formatter(FuncFormatter(_times))
    axes.set_xlabel("contestant's time / fastopt's (median; thin line: quartiles)")
    axes.grid(axis="x")
    return figure


def kernels(record: Record, theme: Theme) -> Figure | None:
    """Loops over elements, by instruction set."""
    rows = [row for row in record["rows"] if row["unit"] == "element"]
    return _grouped(record, theme, rows, "Kernels on one thread, against their base", named=False)


def step_parts(record: Record, theme: Theme) -> Figure | None:
    """What is not a loop over elements: collection, threads, Python."""
    rows = [row for row in record["rows"] if row["unit"] != "element"]
    return _grouped(record, theme, rows, "Parts of a step, against their base", named=True)
