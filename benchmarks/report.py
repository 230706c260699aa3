"""What is made from saved records: tables for documents, machines side by side, the HTML page."""

from __future__ import annotations

import argparse
import base64
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from markdown_it import MarkdownIt

from benchmarks import (
    compact,
    cpu,
    curves,
    gpu,
    importing,
    micro,
    others,
    peers,
    plots,
    profiling,
    quality,
    record,
    rules,
    sharded,
    tail,
    train,
    tuning,
)
from benchmarks.record import Record
from benchmarks.session import heading, markdown, notes

HELP = "pictures, tables for documents and one HTML page of saved records, of several machines too"

MEASURED = (
    cpu,
    rules,
    compact,
    gpu,
    tuning,
    peers,
    others,
    tail,
    sharded,
    curves,
    train,
    quality,
    micro,
    profiling,
    importing,
)
QUESTIONS = [measured.QUESTION for measured in MEASURED]
TABLES = {question.kind: question.table for question in QUESTIONS}
# What of them documents leave out.
DETAILS = ["fastopt us", "against us", "GB/s", "loss gap", "control's", "verdict"]
DETAILS += ["source", "states", "bytes", "backends"]  # which docs/optimizers.md has
IN_DOCUMENTS = (
    "cpu",
    "rules",
    "compact",
    "tail",
    "sharded",
    "peers",
    "others",
    "train",
    "quality",
    "import",
)
# Whose rows have one ratio each, which machines can be compared by.
COMPARED = ("cpu", "compact", "tail")
RATIO, FLOOR, BY = "ratio [quartiles]", "time / floor", ["work", "optimizer"]

# Pictures are drawn for white; on a dark page their lightness is turned around, their hues kept.
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1rem; max-width: 80rem; font: 15px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; font-size: .87rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #8886; }
h3 { margin-top: 3rem; }
strong { color: light-dark(#b04a00, #ff9a4d); }
img { max-width: 100%; width: 50rem; }
@media (prefers-color-scheme: dark) { img { filter: invert(1) hue-rotate(180deg); } }
"""
METHOD = """# fastopt: benchmarks

Every number is a ratio inside one process: contestants run in turn, in rounds whose order rotates;
shown are medians of the rounds' own ratios with their quartiles. Each contestant has tensors of its
own with the same values, and its result is checked against a float64 reference before it is timed:
a wrong one is reported as wrong, not as fast. The floor is a bare stream over the same bytes,
measured in the same rounds. A row is ok, short of a goal (bold), noisy (the middle half of its
ratios is too wide to claim anything) or wrong.
"""


def document(found: Record) -> str:
    """The table of a record as documents show it."""
    shown = TABLES[found["kind"]](found).drop(columns=DETAILS, errors="ignore")
    if found["kind"] == "peers":
        shown = peers.side_by_side(found)
    text = f"{heading(found)}\n{markdown(shown)}"
    if libraries := found.get("libraries"):
        versions = ", ".join(f"{name} {v or 'absent'}" for name, v in libraries.items())
        text += f"\nVersions: {versions}.\n"
    return text


def side_by_side(records: Sequence[Record]) -> str:
    """Of each kind with records of several machines or instruction sets a table, a column each.

    A cell has the ratio and the time over the floor. Peers and goals that differ between machines
    are named in the order of their columns.
    """
    by_kind = defaultdict(list)
    for found in records:
        if found["kind"] in COMPARED:
            by_kind[found["kind"]].append(found)
    return "\n".join(_joined(several) for several in by_kind.values() if len(several) > 1)


def _joined(records: Sequence[Record]) -> str:
    tables = []
    for found in records:
        table = TABLES[found["kind"]](found).replace("short", "")  # which is bold
        table["optimizer"] = table["optimizer"].str.replace(r", forced \w+", "", regex=True)
        for more in (FLOOR, ""):
            table[RATIO] = table[RATIO].where(table[more] == "", table[RATIO] + ", " + table[more])
        tables.append(table.set_index(BY))

    def named(column: str) -> pd.Series:
        rows = pd.concat([table[column] for table in tables], axis=1).fillna("")
        texts = [
            " / ".join(cell or "-" for cell in row) if len({*row} - {""}) > 1 else max(row)
            for row in rows.to_numpy()
        ]
        return pd.Series(texts, rows.index, name=column)

    measured = [
        table[RATIO].str.removeprefix(", ").rename(record.device(found))  # of a wrong row none
        for table, found in zip(tables, records, strict=True)
    ]
    columns = [named("against"), named("goal"), *measured]
    joined = pd.concat(columns, axis=1).fillna("").reset_index()
    when = [heading(found).splitlines()[-1] for found in records]
    return "\n\n".join([f"### {records[0]['kind']}, side by side", *when, markdown(joined)])


def filled(text: str, records: Sequence[Record]) -> str:
    """A document whose tables stand between `<!-- table: KIND DEVICE -->` and `<!-- end -->`.

    DEVICE is part of what a record's heading says it was measured on; of a kind that can be
    compared, records of several devices make one table, side by side.
    """

    def table(mark: re.Match[str]) -> str:
        kind, _, device = mark[1].partition(" ")
        found = [r for r in records if r["kind"] == kind and device in record.device(r)]
        if not found:
            raise SystemExit(f"no record given of {mark[1]!r}, which the document has a table of")
        text = side_by_side(found) or document(found[0])
        return f"<!-- table: {mark[1]} -->\n\n{text}\n<!-- end -->"

    return re.sub(r"<!-- table: (.*?) -->.*?<!-- end -->", table, text, flags=re.S)


def page(records: list[tuple[Record, list[Path]]]) -> str:
    """The whole page, of records with their pictures."""
    text = MarkdownIt("commonmark", {"html": False}).enable("table")
    text.validateLink = lambda url: url.startswith("data:image/png;")  # type: ignore[method-assign]
    sections = [METHOD]
    for found, pictures in records:
        settings = {**found["settings"], "command": " ".join(found["command"])}
        settings |= {**found["machine"], **found["versions"], **found.get("libraries", {})}
        facts = "; ".join(f"{name} {value}" for name, value in settings.items() if value)
        sections += [heading(found), *(_embedded(path) for path in pictures)]
        sections += [markdown(TABLES[found["kind"]](found)), notes(found), f"`{facts}`\n"]
    sections.append(side_by_side([found for found, _ in records]))
    body = text.render("\n".join(sections))
    head = f"<meta charset='utf-8'><title>fastopt: benchmarks</title><style>{STYLE}</style>"
    return f"<!DOCTYPE html>\n<html lang='en'><head>{head}</head>\n<body>\n{body}</body></html>\n"


def _embedded(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f"![{path.stem}: the numbers are in the table below](data:image/png;base64,{data})\n"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks report`."""
    parser.add_argument("files", nargs="+", type=record.saved, metavar="FILE.json")
    folder = "folder of report.html, tables.md and pictures"
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help=folder)
    fill = "a document: put the tables where it has marks for them"
    parser.add_argument(
        "--fill", type=Path, action="append", default=[], metavar="FILE.md", help=fill
    )


def main(arguments: argparse.Namespace) -> int:
    """Write it all, print the documents' tables."""
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    records, tables = [], []
    for path in arguments.files:
        found, pictures = record.load(path), []
        for name, figure in plots.figures(found).items():
            pictures.append(out / f"{path.stem}-{name}.png")
            figure.savefig(pictures[-1])
        records.append((found, pictures))
        tables += [document(found)] * (found["kind"] in IN_DOCUMENTS)
    kept = [found for found, _ in records]
    for path in arguments.fill:
        path.write_text(filled(path.read_text(encoding="utf-8"), kept), encoding="utf-8")
    if several := side_by_side(kept):
        tables.append(several)
    (out / "tables.md").write_text("\n".join(tables))
    (out / "report.html").write_text(page(records))
    print("\n".join(tables))
    return 0
