"""What moved between two records of a kind: speeds, a move, the command."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.contestants import FLOOR
from benchmarks.method import Spread, ratios
from benchmarks.record import Record

HELP = "what moved beyond its noise between two records of a kind; exits 1 on a regression"

# Identical contestants differ by up to 4% from where their tensors lie (race.py).
SAME = 0.05


@dataclass(frozen=True)
class Move:
    """The speed of something, as a ratio of two times of one process, in both records."""

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


def ours(row: Record) -> list[str]:
    """Whose speed a row is about: fastopt's, by instruction set where it is there by each."""
    if "base" in row:  # of a micro-benchmark, whose other contestants are all of ours
        return [name for name in row["samples"] if name != row["base"]]
    mine = [name for name in row["samples"] if name.startswith("fastopt")]
    return ["fastopt"] if "fastopt" in mine else mine


def speeds(found: Record) -> dict[str, Spread]:
    """Everything in a record that has a speed: another's time over its own, larger is quicker."""
    return {
        f"{row['id']}: {other} / {one}": ratio
        for row in found["rows"]
        for one in ours(row)
        for other, ratio in ratios(row["samples"], one).items()
        if other not in (*ours(row), FLOOR)
    }


def wrong(found: Record) -> list[str]:
    """What came out wrong of ours; a peer's wrong result is its own affair."""
    return [
        row["id"]
        for row in found["rows"]
        if row["verdict"] == "wrong" or any(n.startswith("fastopt") for n in row.get("wrong", []))
    ]


def moves(old: Record, new: Record) -> list[Move]:
    """What both records have a speed of."""
    before, after = speeds(old), speeds(new)
    return [Move(name, before[name], after[name]) for name in before if name in after]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks compare`."""
    parser.add_argument("old", type=record.saved)
    parser.add_argument("new", type=record.saved)


def main(arguments: argparse.Namespace) -> int:
    """Print what moved; 1 when something got slower or wrong, 2 when nothing can be compared."""
    old, new = record.load(arguments.old), record.load(arguments.new)
    both = moves(old, new) if old["kind"] == new["kind"] else []
    broken = wrong(new)
    console = Console()
    if not both and not broken:
        console.print(
            f"nothing to compare: {arguments.old} is of kind {old['kind']!r}, {arguments.new} of "
            f"kind {new['kind']!r}; two of one kind are needed, with a speed that both measured"
        )
        return 2
    for about in ("cpu", "threads"):
        if old["machine"][about] != new["machine"][about]:
            console.print(f"{about} differs: {old['machine'][about]}, {new['machine'][about]}")
    moved = [move for move in both if move.beyond_noise]
    shown = Table("row", "old", "new", "change")
    for move in sorted(moved, key=lambda move: move.change):
        style = "red" if move.change < 0 else "green"
        spreads = move.old.text(), move.new.text()
        shown.add_row(move.id, *spreads, f"[{style}]{move.change:+.0%}")
    if moved:
        console.print(shown)
    for name in speeds(old).keys() - speeds(new).keys():
        console.print(f"{name}: not in {arguments.new}")
    console.print(f"{len(moved)} of {len(both)} ratios moved beyond their noise")
    for name in broken:
        console.print(f"[red]{name}: wrong result")
    return int(bool(broken) or any(move.change < 0 for move in moved))
