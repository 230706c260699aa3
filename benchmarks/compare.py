"""What moved between two CPU records: one row's move, the table of moves, the command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.method import Spread
from benchmarks.record import Record

HELP = "rows of two cpu records that moved beyond their noise; exits 1 on a regression"

# Identical contestants differ by up to 4% from where their tensors lie (race.py).
SAME = 0.05


@dataclass(frozen=True)
class Move:
    """A row's ratio over the peer, in both records."""

    id: str
    old: Spread
    new: Spread

    @property
    def change(self) -> float:
        """Relative change of the median ratio; below 0 is slower than it was."""
        return self.new.median / self.old.median - 1

    @property
    def beyond_noise(self) -> bool:
        """Whether the middle halves of the rounds do not meet and the medians differ by SAME."""
        apart = self.new.q3 < self.old.q1 or self.new.q1 > self.old.q3
        return apart and abs(self.change) > SAME


def moves(old: Record, new: Record) -> list[Move]:
    """The rows that both records timed."""
    before = {row["id"]: row for row in old["rows"] if "ratio" in row}
    return [
        Move(row["id"], Spread(**before[row["id"]]["ratio"]), Spread(**row["ratio"]))
        for row in new["rows"]
        if "ratio" in row and row["id"] in before
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks compare`."""
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)


def main(arguments: argparse.Namespace) -> int:
    """Print what moved; 1 when a row got slower or a result became wrong."""
    old, new = (record.load(path, "cpu") for path in (arguments.old, arguments.new))
    console = Console()
    for about in ("cpu", "threads"):
        if old["machine"][about] != new["machine"][about]:
            console.print(f"{about} differs: {old['machine'][about]}, {new['machine'][about]}")
    both = moves(old, new)
    moved = [move for move in both if move.beyond_noise]
    wrong = [row["id"] for row in new["rows"] if row["verdict"] == "wrong"]
    shown = Table("row", "old", "new", "change")
    for move in sorted(moved, key=lambda move: move.change):
        style = "red" if move.change < 0 else "green"
        shown.add_row(
            move.id,
            *(f"{s.median:.2f}x [{s.q1:.2f}, {s.q3:.2f}]" for s in (move.old, move.new)),
            f"[{style}]{move.change:+.0%}",
        )
    if moved:
        console.print(shown)
    console.print(f"{len(moved)} of {len(both)} rows moved beyond their noise")
    for name in wrong:
        console.print(f"[red]{name}: wrong result")
    return int(bool(wrong) or any(move.change < 0 for move in moved))
