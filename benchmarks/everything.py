"""Everything in one go, each command in a process of its own: what runs, then the command.

The folder it writes is what the README and the report are made from: a JSON file a command, the
pictures, report.html, and tables.md for the README.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

from rich.console import Console

from benchmarks.session import add_isa

HELP = "every kind of measurement, its JSON, the pictures, the report, the documents' tables"

# By the name of their file: command and options. They are to end within 10 minutes on 2 cores, so
# some rows stand for many, and quality's trainings (three minutes) are left to their own command.
# All took 567 s on 2 cores of an AMD EPYC (Zen 3), torch.compile's cache empty; in a busier
# hour 640, of which four more rows of compact and three of others took 39. Built anew for
# every placement cpu alone took 181 s, built once 74 (Xeon).
ONCE = ["--placements", "1"]
# A row of GPT-2's 124M elements takes 13 s, most of it to build and to judge what is timed.
STANDING = ["1x64M", "gpt2/AdamW", "resnet50", "100x", "1000x", "mlp", "bf16"]
COMPACT = [
    "1x64M/AdamW/16-bit",
    "1x64M/AdamW/8-bit",
    "1x*bf16+24, 8-bit",
    "1x*float32 states",
    "1x16M",
]
OTHERS = ["Lion/resnet50", "AdEMAMix/resnet50", "AdamWScheduleFree/resnet50"]
MEASUREMENTS: dict[str, list[str]] = {
    "cpu": ["cpu", "--budget", "1", "--only", *STANDING, *ONCE],
    "rules": ["rules", "--budget", "0.3", "--only", "100x64x64", *ONCE],
    "compact": ["compact", "--budget", "1", "--only", *COMPACT, *ONCE],
    "tail": ["tail", "--budget", "1", "--only", "0x", *ONCE],
    "sharded": ["sharded", "--budget", "0.5"],
    "curves": ["curves", "--budget", "0.2", *ONCE],
    "train": ["train"],
    "quality": ["quality", "--only", "decay"],
    "peers": ["peers", "--budget", "2", "--only", "mlp", *ONCE],
    "others": ["others", "--budget", "0.5", "--only", *OTHERS, *ONCE],
    "micro": ["micro", "--budget", "0.2", *ONCE],
    "profile": ["profile", "--budget", "0.3"],
    "import": ["import", "--budget", "8"],
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

    chosen, forced = dict(MEASUREMENTS), {}
    for kind, isa in product(("cpu", "compact", "tail"), arguments.isa or ()):
        chosen[f"{kind}-{isa}"] = MEASUREMENTS[kind]
        forced[f"{kind}-{isa}"] = ["--isa", isa]
    for name, command in chosen.items():
        out = arguments.out / f"{name}.json"
        # A quick run takes no time whatever its options, and is to go through every row.
        asked = [command[0], "--quick"] if arguments.quick else command
        run(name, *asked, *forced.get(name, []), "--out", str(out))
        if out.exists():
            saved.append(str(out))
    run("report", "report", *saved, "--out", str(arguments.out))
    console.rule(f"{time.monotonic() - began:.0f} s in all")
    if failed:
        console.print(f"failed or wrong: {', '.join(failed)}")
    return int(bool(failed))
