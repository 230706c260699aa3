"""What moved between two records: what each kind compares, a move, their table, the command."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks import record
from benchmarks.method import Spread, paired, spread
from benchmarks.race import FLOOR
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


def speeds(record: Record) -> dict[str, Spread]:
    """Everything in a record that has a speed: another's time over its own, larger is quicker."""
    found: dict[str, Spread] = {}
    for row in _rows(record):
        name, samples = _name(row), row.get("samples", {})
        if "base" in row:  # a micro-benchmark, of several contestants of ours
            for who in row.get("of_base", {}):
                found[f"{name}: {who}"] = spread(paired(samples[row["base"]], samples[who]))
        elif "sweep" in row:
            ours = {who for who in samples if who.startswith("fastopt")}  # one an instruction set
            for who, of in itertools.product(samples.keys() - ours - {FLOOR}, sorted(ours)):
                found[f"{name}: {who} / {of}"] = spread(paired(samples[who], samples[of]))
        elif "ratios" in row:
            found |= {f"{name}: {who}": Spread(**ratio) for who, ratio in row["ratios"].items()}
        elif "ratio" in row:
            found[name] = Spread(**row["ratio"])
    return found


def wrong(record: Record) -> list[str]:
    """What came out wrong of ours; a peer's wrong result is its own affair."""
    return [
        _name(row)
        for row in _rows(record)
        if row.get("verdict") == "wrong"
        or any(who.startswith("fastopt") for who in row.get("wrong", []))
    ]


def _rows(record: Record) -> list[Record]:
    rows: list[Record] = record.get("rows") or record.get("points") or []
    return rows


def _name(row: Record) -> str:
    if "sweep" in row:
        return f"{row['sweep']} {row['x']}"
    return str(row["id"])


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
    old, new = (record.load(path) for path in (arguments.old, arguments.new))
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
        shown.add_row(
            move.id,
            *(f"{s.median:.2f}x [{s.q1:.2f}, {s.q3:.2f}]" for s in (move.old, move.new)),
            f"[{style}]{move.change:+.0%}",
        )
    if moved:
        console.print(shown)
    for name in speeds(old).keys() - speeds(new).keys():
        console.print(f"{name}: not in {arguments.new}")
    console.print(f"{len(moved)} of {len(both)} rows moved beyond their noise")
    for name in broken:
        console.print(f"[red]{name}: wrong result")
    return int(bool(broken) or any(move.change < 0 for move in moved))
