"""The README's tables from saved records: cells, a table of each kind, the command."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from benchmarks import record
from benchmarks.race import FLOOR
from benchmarks.record import Record

HELP = "Markdown tables for the README from saved records"


def _ratio(spread: Record, missed: bool = False) -> str:
    """A median with its quartiles, bold below its goal."""
    median = f"{spread['median']:.2f}x"
    shown = f"**{median}**" if missed else median
    return f"{shown} [{spread['q1']:.2f}, {spread['q3']:.2f}]"


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    names = list(columns)
    yield f"| {' | '.join(names)} |"
    yield f"|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def machine(found: Record) -> str:
    """What the record was measured on, in a line."""
    on, versions = found["machine"], found["versions"]
    return (
        f"{on['cpu']}, {versions.get('isa')}, {on['threads']} threads, torch {versions['torch']}, "
        f"{versions.get('compiler')}, {found['time']}, commit {(versions['commit'] or '?')[:10]}"
    )


def goals(found: Record) -> Iterator[str]:
    """Rows with goals; a ratio or floor that misses its goal is bold."""
    columns = ("work", "optimizer", "against", "ratio [quartiles]", "goal", "time / floor", "")

    def cells() -> Iterator[list[str]]:
        for row in found["rows"]:
            about = [row["work"], f"{row['algorithm']}, {row['dtype']}"]
            if "ratio" not in row:
                yield [*about, ", ".join(row["wrong"]), "**wrong**", "", "", ""]
                continue
            floor = f"{row['floor_ratio']['median']:.2f}"
            yield [
                *about,
                row["peer"],
                _ratio(row["ratio"], "ratio" in row["missed"]),
                f"{row['goal']:g}x",
                f"**{floor}**" if "floor" in row["missed"] else floor,
                "; ".join(
                    [row["verdict"]] * (row["verdict"] != "ok")
                    + [f"{name} is wrong" for name in row["wrong"]]
                ),
            ]

    yield from _table(columns, cells())


def everybody(found: Record) -> Iterator[str]:
    """A line a contestant and a column a row: its time over fastopt's."""
    rows = [row for row in found["rows"] if "times" in row]
    names = list(dict.fromkeys(name for row in rows for name in (*row["times"], *row["wrong"])))
    columns = ["time over fastopt's", *(f"{row['work']}, {row['algorithm']}" for row in rows)]

    def cell(row: Record, name: str) -> str:
        if name in row["wrong"]:
            return "wrong"
        return f"{row['ratios'][name]['median']:.2f}x" if name in row["ratios"] else ""

    entrants = [name for name in names if name not in ("fastopt", FLOOR)]
    yield from _table(columns, ([name, *(cell(row, name) for row in rows)] for name in entrants))
    yield ""
    listed = ", ".join(f"{name} {v or 'absent'}" for name, v in found["libraries"].items())
    yield f"Versions: {listed}."


def trainings(found: Record) -> Iterator[str]:
    """A line a training: fastopt against the quickest of torch's for its step."""
    columns = ("net", "optimizer", "forward+backward", "torch's step", "fastopt's", "step", "all")

    def cells() -> Iterator[list[str]]:
        for row in found["rows"]:
            if "ratio" not in row:
                yield [row["work"], row["algorithm"], *[""] * 4, "**wrong**"]
                continue
            peer = row["peer"]
            yield [
                f"{row['work']}, {row['tensors']} tensors",
                row["algorithm"],
                f"{row['around_times']['fastopt']['median'] * 1e6:,.0f} us",
                f"{row['times'][peer]['median'] * 1e6:,.0f} us ({peer.removeprefix('torch.')})",
                f"{row['times']['fastopt']['median'] * 1e6:,.0f} us",
                _ratio(row["ratio"]),
                _ratio(row["whole_ratios"][peer]),
            ]

    yield from _table(columns, cells())


TABLES: dict[str, Callable[[Record], Iterator[str]]] = {
    "cpu": goals,
    "tail": goals,
    "peers": everybody,
    "train": trainings,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks markdown`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE.json")
    parser.add_argument("--out", type=Path, help="a file to write them to as well")


def main(arguments: argparse.Namespace) -> int:
    """Print a table for every file of a kind that has one."""
    lines = []
    for path in arguments.files:
        found = record.load(path)
        if found["kind"] in TABLES:
            lines += [f"### {found['kind']}", "", machine(found), ""]
            lines += [*TABLES[found["kind"]](found), ""]
    text = "\n".join(lines)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    return 0
