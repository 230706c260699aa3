"""What a measurement ran on: machine, versions, the header of every JSON file; saving, loading.

The schema. One command writes one file, named after it: cpu.json, curves.json, ... Every file is
a header (`kind`, `schema`, `time`, `command`, `settings`, `machine`, `versions`) and `rows`.
Tables, plots, report and compare are made from these files alone. Fields are added, never changed
in meaning. A row of any kind has

    id               its address, unique in the file, e.g. "gpt2/Adam/fp32"
    samples          {contestant: [seconds per step, one per round]}; index i is one round for all;
                     "floor" is a bare stream over the bytes of the row, where it means something
    verdict          "ok", "short" of a goal, "noisy", "wrong" (who: `wrong`), "right" (quick run)

and, where they mean something,

    work, algorithm, dtype, tensors, elements
    bytes_per_param  moved per parameter by one step of fastopt
    bytes            {contestant: the same}, where contestants differ (8-bit states)
    errors           {contestant: error of its result in tolerances, at most 1 is right}
    absent           {contestant: why it did not take part}
    rounds           rounds of each placement in memory, in the samples' order
    peer, times, ratio, floor_ratio, goal, floor_goal, missed
                     what follows from the samples: spreads are {median, q1, q3}; `ratio` is the
                     peer's time over fastopt's, `floor_ratio` fastopt's over the floor's

What a kind adds to its rows is told where they are made. `curves` calls its rows `points`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

Record = dict[str, Any]
SCHEMA = 1


def _read(path: str | Path) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _caches() -> dict[str, str]:
    """Size of each cache level as the kernel reports it, e.g. {"L1 Data": "48K"}."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        found[f"L{_read(index / 'level')} {_read(index / 'type')}"] = _read(index / "size")
    return found


def _cpu_model() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def machine() -> Record:
    """The processor, its memory, the threads torch uses, and how busy the machine was."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    sysconf = getattr(os, "sysconf", None)  # not on Windows
    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cores": usable,
        "threads": torch.get_num_threads(),
        "caches": _caches(),
        "ram_bytes": sysconf("SC_PAGE_SIZE") * sysconf("SC_PHYS_PAGES") if sysconf else None,
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:
        return ""
    return done.stdout.strip()


def versions() -> Record:
    """Python, torch, fastopt and its build, the commit."""
    found: Record = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "commit": _git("rev-parse", "HEAD") or None,
        "modified_files": len(_git("status", "--porcelain").splitlines()),
    }
    try:
        import fastopt
        from fastopt import _core
    except ImportError:  # plots and comparisons need no built package
        return found
    return found | {
        "fastopt": fastopt.__version__,
        "isa": _core.isa(),
        "supported_isas": _core.supported_isas(),
        "compiler": _core.compiler,
    }


def header(kind: str, **settings: Any) -> Record:
    """The part every saved measurement begins with."""
    return {
        "kind": kind,
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv[1:],
        "settings": settings,
        "machine": machine(),
        "versions": versions(),
    }


def save(path: Path, record: Record) -> None:
    """Write `record` as JSON, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def load(path: Path, kind: str | None = None) -> Record:
    """Read a JSON file written by `save`; ValueError when it is none, or of another kind."""
    record: Record = json.loads(path.read_text())
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a record of schema {SCHEMA}")
    if kind and record["kind"] != kind:
        raise ValueError(f"{path} is a record of kind {record['kind']!r}, not {kind!r}")
    return record


def saved(text: str) -> Path:
    """For argparse: the path of a file that `load` can read."""
    path = Path(text)
    try:
        load(path)
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error
    return path
