"""A question that is measured: its options, its rows one by one, its record as Markdown.

A question's module has the rows, by id, each a call that measures it, and a table of them: strings
in Markdown, where bold is what misses its goal. The terminal, the report and the README show it.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import record
from benchmarks.method import QUICK, Plan
from benchmarks.record import Record
from fastopt import _core

Rows = Mapping[str, Callable[[], Record]]

# Beside one other process on all cores the same step took twice as long: threads wait for theirs.
BUSY = 0.5


def isas(text: str) -> list[str]:
    """For argparse: instruction sets that this processor can run, separated by commas."""
    names = text.split(",")
    for name in names:
        if name not in _core.supported_isas():
            raise argparse.ArgumentTypeError(f"{name!r} is none of {_core.supported_isas()}")
    return names


def add_isa(parser: argparse.ArgumentParser, what: str) -> None:
    """The option that forces fastopt's instruction set."""
    what += f"; this processor has {', '.join(_core.supported_isas())}"
    parser.add_argument("--isa", type=isas, action="extend", metavar="NAME[,NAME]", help=what)


@dataclass(frozen=True)
class Question:
    """A command: how its rows are made, by id, from arguments and plan, and shown."""

    kind: str
    HELP: str
    rows: Callable[[argparse.Namespace, Plan], Rows]
    table: Callable[[Record], pd.DataFrame]
    plan: Plan | None = field(default_factory=Plan)  # None: its rows take what they take
    forces: bool = True  # whether --isa means anything to it
    options: Mapping[str, Any] = field(default_factory=dict)  # its own, for argparse
    about: Callable[[], Record] = dict  # more to be saved: notes, versions; it may refuse to run

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Options of every command that measures."""
        parser.add_argument("--list", action="store_true", help="print the rows' ids and stop")
        only = "rows whose id has one of these globs in it"
        parser.add_argument("--only", metavar="PATTERN", nargs="+", default=["*"], help=only)
        quick = "tiny tensors: checks results, times mean nothing"
        parser.add_argument("--quick", action="store_true", help=quick)
        if self.plan:
            budget = "seconds per row (default: %(default)s)"
            parser.add_argument("--budget", type=float, default=self.plan.budget, help=budget)
            often = "how often everything is built anew (default: see race.py, or the command's)"
            parser.add_argument("--placements", type=int, default=self.plan.placements, help=often)
        parser.add_argument("--threads", type=int, help="threads for torch and fastopt")
        if self.forces:
            add_isa(parser, "each row once for each of these instruction sets, forced on fastopt")
        for name, how in self.options.items():
            parser.add_argument(name, **how)
        parser.add_argument("--out", type=Path, help="default: build/benchmarks/<command>.json")

    def main(self, arguments: argparse.Namespace) -> int:
        """Measure the chosen rows, save after each, print the table; 1 if one came out wrong."""
        if arguments.threads:
            torch.set_num_threads(arguments.threads)
        plan = QUICK if arguments.quick else self.plan or Plan()
        if self.plan and not plan.quick:
            plan = replace(plan, budget=arguments.budget, placements=arguments.placements)
        made = self.rows(arguments, plan)
        matched = {only: fnmatch.filter(made, f"*{only}*") for only in arguments.only}
        for only, ids in matched.items():
            if not ids:
                raise SystemExit(f"no row matches {only!r}; see --list")
        asked = set().union(*matched.values())
        chosen = {k: row for k, row in made.items() if k in asked}
        if arguments.list:
            print("\n".join(chosen))
            return 0
        forced: list[str] = getattr(arguments, "isa", None) or []
        found = record.header(self.kind, isa=forced, **asdict(plan)) | self.about() | {"rows": []}
        usual = f"build/benchmarks/{'-'.join([self.kind, *forced])}.json"
        out = arguments.out or Path(found.pop("out", usual))
        best, shown = _core.isa(), console()
        runs = list(product(forced or [best], chosen.items()))
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        # Drawn between rows only: a redraw inside a timed step would be part of its time.
        with Progress(*columns, TimeElapsedColumn(), console=shown, auto_refresh=False) as progress:
            task = progress.add_task("", total=len(runs))
            for isa, (name, make) in runs:
                name = f"{name}, forced {isa}" if forced else name
                progress.update(task, description=name, refresh=True)
                _core.select_isa(isa)
                try:
                    row = {"id": name, **make()} | ({"isa": isa} if forced else {})
                finally:
                    _core.select_isa(best)
                found["rows"].append(row)
                record.save(out, found)  # after every row: an interrupted run is kept
                progress.console.print(f"{name}: {row['verdict']}", highlight=False)
                progress.advance(task)
        show(found, self.table(found))
        print(f"{out}: every sample")
        wrong = [row["id"] for row in found["rows"] if row["verdict"] == "wrong"]
        return int(bool(wrong or found.get("failed")))


def each_of(rows: Sequence[Any], run: Callable[..., Record]) -> Callable[..., Rows]:
    """Of a question whose rows are always the same: `run` takes one of them and the plan."""
    return lambda arguments, plan: {row.id: partial(run, row, plan) for row in rows}


def console() -> Console:
    """A file or pipe has no width of its own; all columns of a table need this much."""
    shown = Console()
    return shown if shown.is_terminal else Console(width=160)


def show(found: Record, table: pd.DataFrame) -> None:
    """A record and its table on the terminal."""
    console().print(Markdown("\n".join([heading(found), markdown(table), notes(found)])))


def heading(found: Record) -> str:
    """The kind, and what the record was measured on."""
    versions = found["versions"]
    build = f"torch {versions['torch']}, {versions['compiler']}"
    commit = (versions["commit"] or "?")[:10]
    on = record.device(found)
    return f"### {found['kind']}\n\n{on}, {build}, {found['time']}, commit {commit}\n"


def markdown(table: pd.DataFrame) -> str:
    """A table of strings without the padding that every change of a cell would move."""
    text = table.to_markdown(index=False, tablefmt="github", disable_numparse=True)
    return re.sub(r" +", " ", re.sub(r"-{3,}", "---", text)) + "\n"


def notes(found: Record) -> str:
    """What must be known before the times of a record are believed."""
    said = list(found.get("notes", []))
    if found["settings"].get("isa"):
        said.append(
            "forced: fastopt's step and the floor run on the instruction set named; torch keeps "
            f"its own ({found['versions']['torch_isa']})"
        )
    if found["settings"].get("quick"):
        said.append("quick run: only the results are checked, the times mean nothing")
    if (found["machine"]["load_before"] or 0) > BUSY:
        said.append(f"the machine was busy before: load {found['machine']['load_before']:.1f}")
    return "".join(f"- {note}\n" for note in said)


def named(row: Record) -> str:
    """An optimizer with its dtype, and the instruction set it was forced to."""
    forced = [f"forced {row['isa']}"] if row.get("isa") else []
    return ", ".join([row["algorithm"], row["dtype"], *forced])


def microseconds(seconds: float, digits: int = 1) -> str:
    """A time for a table; below a millisecond with so many decimals."""
    return f"{seconds * 1e6:,.{digits if seconds < 1e-3 else 0}f}"
