"""The matrix on the terminal, a row a cell, then as docs/policy.md's grid in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Cell = dict[str, Any]
STYLES = {"passed": "green", "failed": "bold red", "not run": "yellow"}
COLUMNS = ("Python", "torch", "compiler", "outcome", "detail", "seconds")
# A file or pipe has no width of its own.
PLAIN_WIDTH = 160


def version_key(label: str) -> tuple[bool, tuple[int, ...]]:
    """Sorts 3.9 before 3.10, and free-threaded ones last."""
    return label.endswith("t"), tuple(int(part) for part in label.rstrip("t").split(".") if part)


def told(cells: Iterable[Cell]) -> list[Cell]:
    """Without what was not run here but passed elsewhere: in a container with that Python, say."""
    cells = list(cells)
    passed = [cell for cell in cells if cell["outcome"] == "passed"]
    keep = [
        cell
        for cell in cells
        if cell["outcome"] != "not run"
        or not any(
            all(cell[k] in ("", other[k]) for k in ("python", "torch")) and other["python"]
            for other in passed
            if cell["python"]
        )
    ]
    return sorted(keep, key=lambda c: (version_key(c["python"]), version_key(c["torch"])))


def show(cells: Iterable[Cell]) -> None:
    table = Table(*COLUMNS, box=box.SIMPLE_HEAD)
    for cell in told(cells):
        row = [cell["python"], cell["torch"], cell["compiler"], cell["outcome"], cell["detail"]]
        table.add_row(*row, f"{cell['seconds']:.0f}", style=STYLES[cell["outcome"]])
    console = Console()
    console = console if console.is_terminal else Console(width=PLAIN_WIDTH)
    console.print(table)


def markdown(cells: Iterable[Cell]) -> str:
    """A row a Python, a column a torch, in each place what passed; then the rest by name."""
    cells = told(cells)
    grid = [cell for cell in cells if cell["python"]]
    pythons = sorted({cell["python"] for cell in grid}, key=version_key)
    torches = sorted({cell["torch"] for cell in grid} - {""}, key=version_key)
    lines = ["| Python | " + " | ".join(f"torch {torch}" for torch in torches) + " |"]
    lines += ["|" + "---|" * (len(torches) + 1)]
    for python in pythons:
        row = [place(grid, python, torch) for torch in torches]
        lines.append(f"| {python} | " + " | ".join(row) + " |")
    lines.append("")
    for cell in cells:
        name = " ".join(
            f"{prefix}{cell[key]}"
            for prefix, key in (("Python ", "python"), ("torch ", "torch"), ("", "compiler"))
            if cell[key]
        )
        if cell["outcome"] != "passed" or not cell["python"]:
            lines.append(f"- {name}: {cell['outcome']}, {cell['detail']}")
    return "\n".join(lines) + "\n"


def place(cells: list[Cell], python: str, torch: str) -> str:
    here = [cell for cell in cells if (cell["python"], cell["torch"]) == (python, torch)]
    return ", ".join(
        cell["compiler"] if cell["outcome"] == "passed" else cell["outcome"]
        for cell in sorted(here, key=lambda cell: str(cell["compiler"]))
    )
