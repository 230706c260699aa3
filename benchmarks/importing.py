"""What `import fastopt` adds to `import torch`: fresh processes, the row they make, table, command.

Each process imports torch, then fastopt, and reads its clocks between: what torch's own import
varies by is more than all of fastopt's. Bytecode is there before, as an installer leaves it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial

import pandas as pd

from benchmarks.method import Plan, Samples, spreads, verdict
from benchmarks.record import Record
from benchmarks.session import Question, Rows

GOAL = 0.050  # seconds

TIMED = """
import json, time
def clocks():
    return time.perf_counter(), time.process_time()
begin = clocks()
import torch
between = clocks()
import fastopt
end = clocks()
print(json.dumps({
    "torch": [b - a for a, b in zip(begin, between)],
    "fastopt": [b - a for a, b in zip(between, end)],
}))
"""


def processes(count: int) -> tuple[Samples, Samples]:
    """Seconds of both imports by the wall clock and by the processor's, one sample a process."""
    wall: Samples = {"torch": [], "fastopt": []}
    processor: Samples = {"torch": [], "fastopt": []}
    with tempfile.TemporaryDirectory() as bytecode:
        surroundings = os.environ | {"PYTHONPYCACHEPREFIX": bytecode}
        surroundings.pop("PYTHONDONTWRITEBYTECODE", None)
        for index in range(count + 1):  # the first one leaves its bytecode for the others
            command = [sys.executable, "-c", TIMED]
            printed = subprocess.run(command, env=surroundings, stdout=subprocess.PIPE, check=True)
            for name, (passed, used) in json.loads(printed.stdout).items() if index else ():
                wall[name].append(passed)
                processor[name].append(used)
    return wall, processor


def measure(plan: Plan) -> Record:
    """As many processes as the plan has rounds; they take a second or two each."""
    wall, processor = processes(plan.rounds(1.5))
    took = spreads(wall)["fastopt"]
    found = {"samples": wall, "processor": processor, "goal": GOAL}
    return found | {"verdict": verdict(plan.quick, took.median > GOAL, took)}


def table(found: Record) -> pd.DataFrame:
    """Milliseconds of fastopt's import, bold above the goal, beside the seconds of torch's."""
    lines = []
    for row in found["rows"]:
        took, used = spreads(row["samples"]), spreads(row["processor"])
        ours = took["fastopt"]
        bold = "**" if ours.median > row["goal"] else ""
        quartiles = f"[{ours.q1 * 1e3:.1f}, {ours.q3 * 1e3:.1f}]"
        lines.append(
            {
                "import": "fastopt, torch imported",
                "ms [quartiles]": f"{bold}{ours.median * 1e3:.1f}{bold} {quartiles}",
                "goal": f"{row['goal'] * 1e3:.0f}",
                "ms of processor": f"{used['fastopt'].median * 1e3:.1f}",
                "torch, s": f"{took['torch'].median:.2f}",
                "": row["verdict"] if row["verdict"] != "ok" else "",
            }
        )
    return pd.DataFrame(lines)


def rows(arguments: argparse.Namespace, plan: Plan) -> Rows:
    return {"after torch": partial(measure, plan)}


QUESTION = Question(
    "import",
    "what `import fastopt` adds to `import torch`, in fresh processes",
    rows,
    table,
    Plan(budget=40.0, max_rounds=51),
    forces=False,
)
