"""One self-contained HTML page from saved records: tables, pictures, the page, the command.

The tables are those of the terminal, the pictures those of `plot`, drawn once for a light page and
once for a dark one. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table
from rich.text import Text

from benchmarks import curves, gpu, micro, peers, plots, profiling, record, train
from benchmarks import table as cpu_table
from benchmarks.plots.style import DARK, LIGHT
from benchmarks.record import Record

HELP = "one self-contained HTML page of saved records: tables, pictures, machine, method"

TABLES: dict[str, Callable[[Record], Table]] = {
    "cpu": cpu_table.table,
    "tail": cpu_table.table,
    "peers": peers.table,
    "curves": curves.table,
    "train": train.table,
    "micro": micro.table,
    "profile": profiling.table,
    "gpu": gpu.table,
}

TITLES = {
    "cpu": "Steps against torch's, with goals",
    "peers": "Every contestant",
    "tail": "The passes around the step",
    "curves": "Curves",
    "train": "Whole trainings",
    "micro": "Kernels and parts of a step",
    "profile": "Where a step's time goes",
    "gpu": "On the GPU",
}


@dataclass(frozen=True)
class Cell:
    """A table's cell: its text, `kind` of number or words, `mark` where a verdict colours it."""

    text: str
    kind: str = ""
    mark: str = ""


MARKS = {"green": "good", "yellow": "short", "magenta": "noisy", "red": "wrong"}


def _cell(content: Any, justify: str) -> Cell:
    text = content if isinstance(content, Text) else Text.from_markup(str(content))
    style = f"{text.style} {' '.join(str(span.style) for span in text.spans)}"
    mark = next((mark for colour, mark in MARKS.items() if colour in style), "")
    return Cell(text.plain, "number" if justify == "right" else "", mark)


def grid(table: Table) -> tuple[list[Cell], list[list[Cell]]]:
    """Heading and lines of a terminal's table."""
    head = [_cell(column.header, column.justify) for column in table.columns]
    columns = [[_cell(cell, column.justify) for cell in column.cells] for column in table.columns]
    return head, [list(line) for line in zip(*columns, strict=True)]


def _png(figure: Figure) -> str:
    """A figure as a data URI; its few colours need a third of the bytes as a palette."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    image = Image.open(drawn).convert("RGB")
    # This method keeps the rare colours, a marker's among them.
    image = image.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    image.save(packed, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


@dataclass(frozen=True)
class Picture:
    """One figure, drawn for both kinds of page."""

    caption: str
    light: str
    dark: str


def pictures(found: Record) -> Iterator[Picture]:
    """Every figure of a record."""
    dark = plots.figures(found, DARK)
    for name, (caption, figure) in plots.figures(found, LIGHT).items():
        yield Picture(caption, _png(figure), _png(dark[name][1]))


def _facts(found: Record) -> dict[str, str]:
    """Machine, versions and settings of a record, as the page shows them."""
    machine, versions = found["machine"], found["versions"]
    caches = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    ram = f", {machine['ram_bytes'] / 2**30:.0f} GiB of memory" if machine["ram_bytes"] else ""
    commit = versions.get("commit") or "unknown"
    if versions.get("modified_files"):
        commit += f" and {versions['modified_files']} modified files"
    facts = {
        "device": found.get("device", {}).get("name", ""),
        "processor": f"{machine['cpu']} ({machine['architecture']}), {machine['cores']} cores{ram}",
        "caches": caches,
        "threads": str(machine["threads"]),
        "load before": f"{machine['load_before']:.2f}" if machine["load_before"] else "",
        "instruction set": versions.get("isa", ""),
        "fastopt": f"{versions.get('fastopt', '?')}, built with {versions.get('compiler', '?')}",
        "torch": f"{versions['torch']} ({versions['torch_isa']}), Python {versions['python']}",
        "libraries": ", ".join(
            f"{name} {version or 'absent'}" for name, version in found.get("libraries", {}).items()
        ),
        "commit": commit,
        "measured": found["time"],
        "command": "python -m benchmarks " + " ".join(found["command"]),
        "settings": ", ".join(f"{name} {value}" for name, value in found["settings"].items()),
    }
    return {name: text for name, text in facts.items() if text}


def page(records: list[Record]) -> str:
    """The whole page."""
    sections = []
    for found in records:
        kind = found["kind"]
        table = TABLES[kind](found)
        head, lines = grid(table)
        verdicts = [row.get("verdict", "") for row in found.get("rows", [])]
        sections.append(
            {
                "id": kind,
                "title": TITLES.get(kind, kind),
                "facts": _facts(found),
                "quick": found["settings"].get("quick"),
                "counts": {v: verdicts.count(v) for v in dict.fromkeys(verdicts) if v},
                "head": head,
                "lines": lines,
                "caption": str(table.caption or ""),
                "pictures": list(pictures(found)),
            }
        )
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    return templates.get_template("report.html").render(sections=sections)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks report`."""
    parser.add_argument("files", nargs="+", type=record.saved, metavar="FILE.json")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks/report.html"))


def main(arguments: argparse.Namespace) -> int:
    """Write the page."""
    records = [record.load(path) for path in arguments.files]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(page(records), encoding="utf-8")
    print(arguments.out)
    return 0
