"""OpenMP runtimes: the core calls the one that torch calls, and a second one is seen and named."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastopt import openmp

pytestmark = pytest.mark.skipif(not openmp.MAPS.exists(), reason="reads Linux's process table")

LOAD = """
import ctypes, runpy, sys, torch
for file in sys.argv[1:]:
    ctypes.CDLL(file)
runpy.run_module("fastopt", run_name="__main__")
"""


def python_m_fastopt(*load: Path, **environment: str) -> list[str]:
    """What it prints of OpenMP where these libraries were loaded after torch."""
    found = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, load)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = found.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("OpenMP: "))
    return [lines[at], *(line for line in lines[at + 1 :] if line.startswith("  "))]


def test_the_core_uses_torchs() -> None:
    lines = python_m_fastopt()
    assert len(lines) == 1
    assert lines[0].endswith("(used by torch and fastopt)")


@pytest.fixture
def second(tmp_path: Path) -> Path:
    """A runtime beside torch's, named as a repaired wheel names its own: torch's, copied."""
    file = tmp_path / "libgomp-0123abcd.so.1.0.0"
    torchs = python_m_fastopt()[0].removeprefix("OpenMP: ").split(" (used by")[0]
    return Path(shutil.copy(torchs, file))


def test_a_second_runtime(second: Path) -> None:
    """Said, with both files, who calls which, and what to do."""
    first, *files, cure = python_m_fastopt(second)
    assert first == "OpenMP: 2 runtimes in one process"
    assert f"  {second} (used by something else)" in files
    assert sum(line.endswith("(used by torch and fastopt)") for line in files) == 1
    assert "OMP_WAIT_POLICY=passive" in cure


def test_a_runtime_in_front_of_torchs(second: Path) -> None:
    """What is preloaded serves torch, and so the core."""
    lines = python_m_fastopt(LD_PRELOAD=str(second))
    assert f"{second} (used by torch and fastopt)" in "\n".join(lines)


def test_a_core_with_another_runtime() -> None:
    ours, theirs = "/a/libgomp.so.1", "/b/libgomp-0123.so.1"
    first, *files, cure = openmp.describe([ours, theirs], torchs=theirs, cores=ours)
    assert first == "OpenMP: 2 runtimes in one process"
    assert files == [f"  {ours} (used by fastopt)", f"  {theirs} (used by torch)"]
    assert "build fastopt here" in cure


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("libgomp.so.1", True),
        ("libgomp-e985bcbb.so.1.0.0", True),
        ("libomp.so.5", True),
        ("libomp-19.so.5", True),
        ("libiomp5.so", True),
        ("libomptarget.so.19.1", False),
        ("libompd.so", False),
        ("libcomposer.so", False),
    ],
)
def test_names(name: str, is_one: bool) -> None:
    assert bool(openmp.RUNTIME.search(f"/usr/lib/{name}")) == is_one
