"""`make matrix`: every Python by every torch by both compilers, then AArch64 under an emulator.

One wheel a Python and compiler, its warnings errors; one fresh environment a Python and torch,
which runs the tests with each wheel in turn, from a copy of the tree that has no fastopt/ to import
by mistake. What the machine cannot run is named, with the reason. A cell that passed stays passed
until a source changes (build/matrix/results.json): an interrupted run goes on where it was.

    make matrix                          # everything
    make matrix ARGS="3.12 2.13 clang"   # of a Python, a torch, a compiler only; also: aarch64
    MATRIX_TESTS=all make matrix         # the whole suite in each cell, or modules by name
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import arm
from machine import (
    COMPILERS,
    PYTHONS,
    ROOT,
    WORK,
    Failed,
    call,
    copy_tree,
    digest,
    environment,
    find_compiler,
    find_python,
    fresh,
    install,
    minor,
    torch_releases,
)
from table import markdown, show, version_key

# What depends on Python's and torch's interfaces and on the compiler, in one to two minutes. The
# benchmarks, the demo and Triton are left to `make test`.
CORE = (
    *("amp", "changes", "conversions", "division", "dropin", "errors", "free_threaded"),
    *("functional", "import", "layouts", "lengths", "lifetime", "mixed", "passes", "reference"),
    *("routes", "torch"),
)
TOOLS = ("numpy", "pytest", "hypothesis", "expecttest")
NEEDED_BYTES = 12e9  # a torch with its CUDA libraries unpacks to 7 GB

Cell = dict[str, Any]
RESULTS = WORK / "results.json"


class Matrix:
    """The cells so far; each is printed and kept as soon as it is known."""

    def __init__(self) -> None:
        self.digest = digest(*tests()[0])
        kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
        self.releases: dict[str, list[str]] = {}  # that each interpreter can have
        self.cells: list[Cell] = [
            cell for cell in kept if cell["digest"] == self.digest and cell["outcome"] == "passed"
        ]

    def passed(self, **key: str) -> bool:
        return any(
            cell["outcome"] == "passed" and all(cell[k] == v for k, v in key.items())
            for cell in self.cells
        )

    def add(self, outcome: str, detail: str, start: float, **key: str) -> None:
        cell: Cell = {**key, "outcome": outcome, "detail": detail, "digest": self.digest}
        cell["seconds"] = round(time.monotonic() - start, 1)
        print(*key.values(), outcome, detail, f"{cell['seconds']:.0f} s", sep="  ", flush=True)
        self.cells = [c for c in self.cells if any(c[k] != v for k, v in key.items())] + [cell]
        WORK.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(self.cells, indent=1))


def last_line(error: Failed) -> str:
    """Of a failed command's output, the line that says why; all of it goes to the terminal."""
    print(error, flush=True)
    text = [line for line in str(error).splitlines() if line.strip()] or ["no output"]
    return next((line for line in text if line.startswith("ERROR: ")), text[-1])[:200]


def build(python: Path, folder: Path, command: str) -> Path:
    """The wheel of one interpreter and compiler."""
    fresh(folder)
    definitions = {"FASTOPT_WERROR": "ON", "CMAKE_CXX_COMPILER": command}
    settings = [f"--config-settings=cmake.define.{k}={v}" for k, v in definitions.items()]
    settings.append(f"--config-settings=build-dir={folder / 'build'}")
    wheel = ["-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}"]
    call(python, *wheel, *settings, ROOT)
    return next(folder.glob("*.whl"))


def tests() -> tuple[list[str], list[str]]:
    """Which test files MATRIX_TESTS asks for, and the packages that they need."""
    chosen = os.environ.get("MATRIX_TESTS", "").split() or [*CORE]
    if chosen == ["all"]:
        return ["tests"], ["[test]"]
    files = [f"tests/test_{name}.py" for name in chosen]
    unknown = [name for name, file in zip(chosen, files, strict=True) if not (ROOT / file).exists()]
    if unknown:
        sys.exit(f"MATRIX_TESTS: no {unknown}; allowed: all, or names as in: {' '.join(CORE)}")
    return files, [] if set(chosen) <= set(CORE) else ["[test]"]


def run_tests(python: Path, wheel: Path, tree: Path) -> str:
    """The suite's closing line, of a wheel in an environment that has torch."""
    files, extra = tests()
    install(python, "--force-reinstall", "--no-deps", wheel)
    if extra:
        install(python, f"{wheel}{extra[0]}")
    quiet = ["-q", "-p", "no:cacheprovider"]
    # A free-threaded Python warns that the core turns the GIL on, unless it is on from the start;
    # test_free_threaded.py asks for each. Other interpreters have it on.
    surroundings = os.environ | {"PYTHON_GIL": "1"}
    output = call(python, "-m", "pytest", *quiet, *files, cwd=tree, env=surroundings)
    found = re.search(r"=* ?(\d+ passed.*?) in ", output)
    return found[1] if found else output.splitlines()[-1]


def run_python(matrix: Matrix, label: str, torches: list[str], compilers: list[str]) -> None:
    """All cells of one interpreter."""
    start = time.monotonic()
    python = find_python(label)
    if python is None:
        reason = "no such interpreter on PATH or in pyenv"
        return matrix.add("not run", reason, start, python=label, torch="", compiler="")
    try:
        pip = environment(python, WORK / f"py{label}")
        releases = torch_releases(pip)
        matrix.releases[label] = [minor(release) for release in releases]
    except Failed as error:
        return matrix.add("not run", last_line(error), start, python=label, torch="", compiler="")
    wheels: dict[str, Path] = {}
    for name in compilers:
        start = time.monotonic()
        found, key = find_compiler(name), {"python": label, "torch": "", "compiler": name}
        if found is None:
            matrix.add("not run", "no such compiler on PATH", start, **key)
            continue
        try:
            wheels[f"{name} {minor(found[1])}"] = build(pip, WORK / f"py{label}-{name}", found[0])
        except Failed as error:
            matrix.add("failed", f"build: {last_line(error)}", start, **key)
    for release in releases:
        if torches and minor(release) not in torches:
            continue
        key = {"python": label, "torch": minor(release)}
        todo = {k: w for k, w in wheels.items() if not matrix.passed(**key, compiler=k)}
        if todo:
            run_torch(matrix, python, release, todo, key)


def run_torch(
    matrix: Matrix, python: Path, release: str, wheels: dict[str, Path], key: dict[str, str]
) -> None:
    """The cells of one environment, which is removed after them."""
    start, folder = time.monotonic(), WORK / "venv"
    free = shutil.disk_usage(WORK).free
    if free < NEEDED_BYTES:
        reason = f"{free / 1e9:.0f} GB of disk free, {NEEDED_BYTES / 1e9:.0f} needed"
        return matrix.add("not run", reason, start, **key, compiler="")
    try:
        inside = environment(python, folder, [f"torch=={release}", *TOOLS])
    except Failed as error:
        return matrix.add("not run", last_line(error), start, **key, compiler="")
    tree = copy_tree(WORK / "tree")
    for compiler, wheel in wheels.items():
        try:
            matrix.add("passed", run_tests(inside, wheel, tree), start, **key, compiler=compiler)
        except Failed as error:
            matrix.add("failed", last_line(error), start, **key, compiler=compiler)
        start = time.monotonic()
    shutil.rmtree(folder)


def run_arm(matrix: Matrix, compilers: list[str]) -> None:
    for compiler in compilers:
        start = time.monotonic()
        key = {"python": "", "torch": "", "compiler": f"AArch64 {compiler}"}
        reason = arm.missing() or ("" if arm.find_cross(compiler) else "no such compiler on PATH")
        try:
            if reason:
                matrix.add("not run", reason, start, **key)
            else:
                matrix.add("passed", f"{arm.compare(compiler)} hashes equal", start, **key)
        except Failed as error:
            matrix.add("failed", last_line(error), start, **key)


def main(words: list[str]) -> int:
    pythons = [word for word in words if word in PYTHONS]
    compilers = [word for word in words if word in COMPILERS] or list(COMPILERS)
    torches = [w for w in words if re.fullmatch(r"2\.\d+", w)]
    unknown = set(words) - {*pythons, *compilers, *torches, "aarch64"}
    if unknown:
        allowed = ", ".join([*PYTHONS, "2.10 and later", *COMPILERS, "aarch64"])
        sys.exit(f"make matrix: {sorted(unknown)} is none of its parts: {allowed}")
    matrix = Matrix()
    on_python = bool(pythons or torches)
    if "aarch64" in words or not on_python:
        run_arm(matrix, compilers)
    if "aarch64" not in words or on_python:
        for label in pythons or PYTHONS:
            run_python(matrix, label, torches, compilers)
    wanted = set(torches) or {release for its in matrix.releases.values() for release in its}
    for label, its in matrix.releases.items():
        for release in sorted(wanted - set(its), key=version_key):
            key = {"python": label, "torch": release, "compiler": ""}
            matrix.add("not run", "no such torch for this Python", time.monotonic(), **key)
    show(matrix.cells)
    (WORK / "matrix.md").write_text(markdown(matrix.cells))
    outcomes = [cell["outcome"] for cell in matrix.cells]
    return int("failed" in outcomes or "passed" not in outcomes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
