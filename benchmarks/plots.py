"""Plots made from saved records alone: the curves, one PNG per sweep beside the JSON."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure  # not pyplot: no display is wanted, none may exist

from benchmarks.method import spread
from benchmarks.record import Record

AXES = {
    "elements": "elements of one tensor",
    "tensors": "tensors holding the same elements",
    "threads": "threads, 2^24 elements",
    "threads-cached": "threads, 2^18 elements",
    "isa": "elements of one tensor",
}


def _curve(record: Record, sweep: str, path: Path) -> None:
    points = [point for point in record["points"] if point["sweep"] == sweep and point["samples"]]
    settings, machine = record["settings"], record["machine"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in points[0]["samples"]:
        x = [point["x"] for point in points]
        times = [
            spread([s * 1e9 / point["elements"] for s in point["samples"][name]])
            for point in points
        ]
        style = "--" if name == "floor" else "-"
        (line,) = axes.plot(x, [t.median for t in times], style, marker=".", label=name)
        axes.fill_between(
            x,
            [t.q1 for t in times],
            [t.q3 for t in times],
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )
    axes.set(xscale="log", yscale="log", xlabel=AXES[sweep], ylabel="ns per element")
    if sweep.startswith("threads"):
        axes.set_xscale("log", base=2)
    axes.set_title(
        f"{settings['algorithm']} {settings['dtype']}, {machine['cpu']}, "
        f"torch {record['versions']['torch']}",
        fontsize="medium",
    )
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def curves(record: Record, out: Path) -> list[Path]:
    """Plot every sweep of `record` as <out's name>-<sweep>.png; the paths written."""
    timed = {point["sweep"] for point in record["points"] if point["samples"]}
    paths = []
    for sweep in AXES:
        if sweep in timed:
            paths.append(out.with_name(f"{out.stem}-{sweep}.png"))
            _curve(record, sweep, paths[-1])
    return paths
