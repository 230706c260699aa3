"""Everything in one go, each command in a process of its own: what runs, then the command.

The folder it writes is what the README and the report are made from: a JSON file a command, the
pictures, report.html, and tables.md for the README.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console

from benchmarks.session import add_isa

HELP = "every measurement, its JSON, the pictures, the report, the documents' tables"

# By the name of their file: command and options, so that all end within 10 minutes on 2 cores. To
# build and check everything anew for every placement took three times as long as to time it.
ONCE = ["--placements", "1"]
MEASUREMENTS: dict[str, list[str]] = {
    "cpu": ["cpu", "--budget", "1", *ONCE],
    "rules": ["rules", "--budget", "0.3", "--only", "100x64x64", *ONCE],
    "compact": ["compact", "--budget", "1", *ONCE],
    "tail": ["tail", "--budget", "1", *ONCE],
    "sharded": ["sharded", "--budget", "1"],
    "curves": ["curves", "--budget", "0.3", *ONCE],
    "train": ["train"],
    "quality": ["quality", "--only", "mlp"],
    "peers": ["peers", "--budget", "2", "--only", "mlp", *ONCE],
    "others": ["others", "--budget", "0.5", "--only", "resnet50", *ONCE],
    "micro": ["micro", "--budget", "0.3", *ONCE],
    "profile": ["profile", "--budget", "0.3"],
    "import": ["import"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `python -m benchmarks all`."""
    quick = "tiny tensors: proves that all works, no more"
    parser.add_argument("--quick", action="store_true", help=quick)
    add_isa(parser, "the tables with goals once more, fastopt forced to these instruction sets")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks"), help="the folder")


def main(arguments: argparse.Namespace) -> int:
    """Run all; 1 if any part failed or found a wrong result. The others still run."""
    console, began = Console(), time.monotonic()
    failed, saved = [], []

    def run(name: str, *command: str) -> None:
        console.rule(f"{name}, {time.monotonic() - began:.0f} s")
        if subprocess.run([sys.executable, "-m", "benchmarks", *command], check=False).returncode:
            failed.append(name)

    chosen = dict(MEASUREMENTS)
    for isa in arguments.isa or ():
        chosen |= {
            f"{k}-{isa}": [*MEASUREMENTS[k], "--isa", isa] for k in ("cpu", "compact", "tail")
        }
    for name, command in chosen.items():
        out = arguments.out / f"{name}.json"
        run(name, *command, *["--quick"] * arguments.quick, "--out", str(out))
        if out.exists():
            saved.append(str(out))
    run("report", "report", *saved, "--out", str(arguments.out))
    console.rule(f"{time.monotonic() - began:.0f} s in all")
    if failed:
        console.print(f"failed or wrong: {', '.join(failed)}")
    return int(bool(failed))
