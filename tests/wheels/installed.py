"""A wheel in a fresh environment with nothing to compile with: installed, then put to work."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from building import HERE, WORK
from machine import Failed, call, copy_tree, environment

# What a wheel must do without.
BUILD_TOOLS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cmake", "ninja", "make", "ld")
PACKAGES = ("numpy", "pytest", "hypothesis", "expecttest")
# The README's loops, torch's own cases, the references to the bit, what importing loads, the
# OpenMP runtimes of the process.
TESTS = [f"tests/test_{name}.py" for name in ("readme", "dropin", "reference", "import", "openmp")]


def bare(folder: Path) -> dict[str, str]:
    """The surroundings of commands in an environment: its own programs on PATH, no others."""
    inside = str(folder / "bin")
    found = [name for name in BUILD_TOOLS if shutil.which(name, path=inside)]
    if found:
        raise Failed(f"{inside} has {found}: nothing is shown by what works there")
    ours = {"PYTHONPATH", "CC", "CXX"}
    return {k: v for k, v in os.environ.items() if k not in ours} | {"PATH": inside}


def check(python: Path, wheel: Path, release: str) -> str:
    """All that a wheel must do beside one release of torch; what the tests' last line says."""
    folder = WORK / "venv"
    inside = environment(python, folder)
    surroundings = bare(folder)

    def run(*arguments: str | Path) -> str:
        return call(inside, *arguments, cwd=tree, env=surroundings)

    tree = copy_tree(WORK / "tree")
    pip = ["-m", "pip", "install", "--quiet", "--only-binary=:all:"]
    run(*pip, wheel, f"torch=={release}", *PACKAGES)
    said = run("-m", "fastopt")
    if f"torch {release.split('+')[0]}" not in said:
        raise Failed(said)
    passed = last_line(run("-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS))
    # A wheel with an OpenMP runtime in it, as many have.
    run(*pip, "scikit-learn")
    runtimes = run(HERE / "second_runtime.py")
    shutil.rmtree(folder)
    return f"{passed}; {runtimes.splitlines()[-1]}"


def last_line(output: str) -> str:
    """How a run of pytest ended."""
    found = re.search(r"\d+ passed.*?(?= in )", output)
    if not found:
        raise Failed(output)
    return found[0]
