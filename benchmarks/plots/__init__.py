"""Pictures made from saved records alone: which figures a record gives, then writing them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure  # not pyplot: no display is wanted, none may exist

from benchmarks.plots import bars, curves, stacks
from benchmarks.plots.style import LIGHT, Theme
from benchmarks.record import Record

Draw = Callable[[Record, Theme], Figure | None]

# By kind of record: (name of the picture, what it shows, how it is drawn).
FIGURES: dict[str, list[tuple[str, str, Draw]]] = {
    "cpu": [
        ("speedup", "Speed-up by work", bars.speedup),
        ("roofline", "Achieved bandwidth over the floor", bars.roofline),
    ],
    "curves": [(sweep, caption, curves.of(sweep)) for sweep, caption in curves.SWEEPS.items()],
    "micro": [
        ("kernels", "Kernels on one thread", bars.kernels),
        ("step", "Parts of a step", bars.step_parts),
    ],
    "profile": [("parts", "Where a step's time goes", stacks.profile)],
    "peers": [("contestants", "Everybody's time over fastopt's", bars.peers)],
    "train": [("split", "A training step: forward and backward, update", stacks.training)],
    "gpu": [("speedup", "Speed-up by work", bars.speedup)],
}
FIGURES["tail"] = FIGURES["cpu"]


def figures(record: Record, theme: Theme = LIGHT) -> dict[str, tuple[str, Figure]]:
    """What `record` has to show: by name, each picture with its caption."""
    drawn = {
        name: (caption, draw(record, theme))
        for name, caption, draw in FIGURES.get(record["kind"], [])
    }
    return {name: (caption, figure) for name, (caption, figure) in drawn.items() if figure}


def save(record: Record, out: Path) -> list[Path]:
    """Write every picture of `record` as <out's name>-<picture>.png; the paths written."""
    paths = []
    for name, (_, figure) in figures(record).items():
        paths.append(out.with_name(f"{out.stem}-{name}.png"))
        figure.savefig(paths[-1])
    return paths
