"""The command that draws: PNG pictures beside each JSON file, from that file alone."""

from __future__ import annotations

import argparse

from benchmarks import plots, record

HELP = "draw the pictures of saved records, beside them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks plot`."""
    parser.add_argument("files", nargs="+", type=record.saved, metavar="FILE.json")


def main(arguments: argparse.Namespace) -> int:
    """Draw every file's pictures; 1 where a file has none to draw."""
    empty = False
    for path in arguments.files:
        paths = plots.save(record.load(path), path)
        for written in paths:
            print(written)
        if not paths:
            print(f"{path}: nothing to draw")
        empty |= not paths
    return int(empty)
