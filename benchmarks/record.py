"""What a measurement ran on and what it found: the schema, the header, saving, loading.

One command writes one file, named after it: cpu.json, curves.json, ... Every file is a header
(`kind`, `schema`, `time`, `command`, `settings`, `machine`, `versions`) and `rows`. Tables, plots,
report and compare are made from these files alone: medians and ratios follow from the samples and
are not stored (older files have them). Fields are added, never changed in meaning. A row has

    id               its address, unique in the file, e.g. "gpt2/Adam/fp32"
    samples          {contestant: [seconds per step, one per round]}; index i is one round for all;
                     "floor" is a bare stream over the bytes of the row, where it means something
    verdict          "ok", "short" of a goal, "noisy", "wrong" (who: `wrong`), "right" (quick run)

and, where they mean something,

    what             a row that is no algorithm: what of it is timed
    work, algorithm, dtype, tensors, elements, threads
    isa              the instruction set that fastopt was forced to
    timing, groups   on a GPU: whose clock, or a captured graph; param groups
    bytes_per_param  moved per parameter by one step of fastopt
    bytes            {contestant: the same}, where contestants differ (8-bit states)
    errors           {contestant: error of its result in tolerances, at most 1 is right}
    absent           {contestant: why it did not take part}
    rounds           rounds of each placement in memory, in the samples' order
    losses           {format: [final validation loss, one per seed]}; index i is one seed for all
    compact, held    {format: share of the parameters with 8-bit states, bytes a parameter kept}
    scales, medians  gradient scales, and what v's root is over its exact value at each
    goal, floor_goal, missed
                     the peer's time over fastopt's, fastopt's over the floor's; which is missed
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any

import torch

import fastopt
from fastopt import _core

Record = dict[str, Any]
SCHEMA = 1


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""


def _caches() -> dict[str, str]:
    """Size of each cache level as the kernel reports it, e.g. {"L1 Data": "48K"}."""
    found = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return {f"L{_read(at / 'level')} {_read(at / 'type')}": _read(at / "size") for at in found}


def _processor() -> str:
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        return ""


def header(kind: str, **settings: Any) -> Record:
    """The part every saved measurement begins with."""
    return {
        "kind": kind,
        "schema": SCHEMA,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv[1:],
        "settings": settings,
        "machine": {
            "cpu": _processor(),
            "architecture": platform.machine(),
            "system": platform.system(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": torch.get_num_threads(),
            "caches": _caches(),
            "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load_before": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torch_isa": torch.backends.cpu.get_cpu_capability(),
            "commit": _git("rev-parse", "HEAD") or None,
            "modified_files": len(_git("status", "--porcelain").splitlines()),
            "fastopt": fastopt.__version__,
            "isa": _core.isa(),
            "supported_isas": _core.supported_isas(),
            "compiler": _core.compiler,
        },
    }


def device(found: Record) -> str:
    """What a record was measured on: a GPU's name, or processor, instruction set and threads."""
    if "device" in found:
        return str(found["device"]["name"])
    machine, forced = found["machine"], found["settings"].get("isa")
    if forced:
        return f"forced {' and '.join(forced)} on {machine['cpu']}, {machine['threads']} threads"
    return f"{machine['cpu']}, {found['versions']['isa']}, {machine['threads']} threads"


def save(path: Path, found: Record) -> None:
    """Write `found` as JSON, creating the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


def load(path: Path) -> Record:
    """Read a JSON file written by `save`; ValueError when it is none."""
    found: Record = json.loads(path.read_text())
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise ValueError(f"{path} is not a record of schema {SCHEMA}")
    return found


def saved(text: str) -> Path:
    """For argparse: the path of a file that `load` can read."""
    path = Path(text)
    try:
        load(path)
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(f"{path}: {error}") from error
    return path
