"""Which OpenMP runtimes this process has loaded: each brings threads of its own."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import torch

from fastopt import _core

MAPS = Path("/proc/self/maps")
# GCC's, LLVM's and Intel's, also under the names that repaired wheels give them.
RUNTIME = re.compile(r"/lib(gomp|omp5?|iomp5)(-[^/]*)?\.so[^/]*$")
ADVICE = (
    "idle threads of one spin on the cores that another one needs: OMP_WAIT_POLICY=passive lets "
    "them sleep; best is to leave out, or build against torch's runtime, what brings the other"
)
REBUILD = (
    "fastopt and torch must share one: build fastopt here, `pip install --force-reinstall "
    "--no-binary fastopt fastopt`, and import torch before what loads the other"
)


class Symbol(ctypes.Structure):
    """What dladdr() finds: Dl_info of <dlfcn.h>."""

    _fields_ = [
        ("file", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def loaded() -> list[str]:
    """The runtimes that are mapped into this process."""
    if not MAPS.exists():
        return []
    files = {line.split(maxsplit=5)[5] for line in MAPS.read_text().splitlines() if "/" in line}
    return sorted(file for file in files if RUNTIME.search(file))


def used_by(library: str) -> str:
    """The runtime that a loaded library calls; empty where none is found.

    Looked for where the dynamic linker looks: in what is global, then in what the library needs.
    """
    dladdr = ctypes.CDLL(None).dladdr
    for name in (None, library):
        try:
            entry = ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).GOMP_parallel
        except (OSError, AttributeError):
            continue
        symbol = Symbol()
        if dladdr(ctypes.cast(entry, ctypes.c_void_p), ctypes.byref(symbol)) and symbol.file:
            return os.path.realpath(os.fsdecode(symbol.file))
    return ""


def describe(runtimes: list[str], torchs: str, cores: str) -> list[str]:
    """One line where torch and the core share the only runtime, else what there is and the cure."""

    def users(file: str) -> str:
        return " and ".join(n for n, its in (("torch", torchs), ("fastopt", cores)) if its == file)

    lines = [f"{file} (used by {users(file) or 'something else'})" for file in runtimes]
    if len(runtimes) < 2:
        return [f"OpenMP: {line}" for line in lines]
    cure = ADVICE if torchs == cores else REBUILD
    return [
        f"OpenMP: {len(runtimes)} runtimes in one process",
        *(f"  {x}" for x in lines),
        f"  {cure}",
    ]


def report() -> list[str]:
    """What `python -m fastopt` says of this process."""
    torchs = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    return describe(loaded(), used_by(str(torchs)), used_by(_core.__file__))
