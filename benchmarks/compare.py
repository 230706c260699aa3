"""What moved between two records of a kind: speeds, moves, the command."""

from __future__ import annotations

import argparse

import pandas as pd
from rich.markdown import Markdown

from benchmarks import record
from benchmarks.contestants import FLOOR
from benchmarks.method import Spread, ratios
from benchmarks.record import Record
from benchmarks.session import console, markdown

HELP = "what moved beyond its noise between two records of a kind; exits 1 on a regression"

# Identical contestants differ by up to 4% from where their tensors lie (race.py).
SAME = 0.05


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


def moves(old: Record, new: Record) -> pd.DataFrame:
    """What both records have a speed of: medians, change, whether that is beyond noise.

    It is where the middle halves of the rounds do not meet and the medians differ by SAME.
    """
    before, after = (pd.DataFrame(map(vars, s.values()), s) for s in (speeds(old), speeds(new)))
    both = before.join(after.add_suffix(" new"), how="inner")
    if both.empty:
        return both
    both["change"] = both["median new"] / both["median"] - 1
    apart = (both["q3 new"] < both["q1"]) | (both["q1 new"] > both["q3"])
    both["moved"] = apart & (both["change"].abs() > SAME)
    return both


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks compare`."""
    parser.add_argument("old", type=record.saved)
    parser.add_argument("new", type=record.saved)


def main(arguments: argparse.Namespace) -> int:
    """Print what moved; 1 when something got slower or wrong, 2 when nothing can be compared."""
    old, new = record.load(arguments.old), record.load(arguments.new)
    both = moves(old, new) if old["kind"] == new["kind"] else pd.DataFrame()
    broken = wrong(new)
    if both.empty and not broken:
        print(
            f"nothing to compare: {arguments.old} is of kind {old['kind']!r}, {arguments.new} of "
            f"kind {new['kind']!r}; two of one kind are needed, with a speed that both measured"
        )
        return 2
    for about in ("cpu", "threads"):
        if old["machine"][about] != new["machine"][about]:
            print(f"{about} differs: {old['machine'][about]}, {new['machine'][about]}")
    moved = both[both["moved"]].sort_values("change") if len(both) else both
    if len(moved):
        shown = moved.drop(columns="moved").round(2).rename_axis("ratio").reset_index()
        shown["change"] = shown["change"].map("{:+.0%}".format)
        console().print(Markdown(markdown(shown.astype(str))))
    for name in speeds(old).keys() - speeds(new).keys():
        print(f"{name}: not in {arguments.new}")
    print(f"{len(moved)} of {len(both)} ratios moved beyond their noise")
    for name in broken:
        print(f"{name}: wrong result")
    return int(bool(broken) or (len(moved) > 0 and bool((moved["change"] < 0).any())))
