"""The NEON kernels under an emulator: the lines of kernels.cpp are those of the x86-64 baseline."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from machine import ROOT, WORK, Failed, call, find_compiler

HERE = Path(__file__).parent
# What decides the bits; `check_flags` holds it against the build of the module.
FLAGS = ["-O3", "-ffp-contract=off", "-fno-math-errno"]
SOURCES = ("isa", "isa_compact", "isa_adafactor")  # compiled for each instruction set
STRICT = ["-Wall", "-Wextra", "-Wno-psabi", "-Werror"]


def find_cross(compiler: str) -> list[str] | None:
    """The command that compiles for AArch64; clang takes the libraries of GCC's cross compiler."""
    gcc = "aarch64-linux-gnu-g++"
    if not shutil.which(gcc):
        return None
    found = find_compiler(compiler)
    if compiler == "GCC" or found is None:
        return [gcc] if compiler == "GCC" else None
    return [found[0], "--target=aarch64-linux-gnu"]


def missing() -> str:
    """What this machine lacks to emulate AArch64; nothing where it lacks nothing."""
    lacking = [name for name in ("qemu-aarch64", "aarch64-linux-gnu-g++") if not shutil.which(name)]
    return f"needs {' and '.join(lacking)} on PATH" if lacking else ""


def check_flags() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    changed = [flag for flag in FLAGS if flag not in text]
    if changed:
        raise Failed(f"CMakeLists.txt has no {changed}: bring FLAGS of {__file__} up to date")


def lines(command: list[str], compiler: str, isa: str, run: list[str]) -> list[str]:
    """One instruction set's table compiled with the program, run: a line a case."""
    program = WORK / f"kernels-{isa}-{compiler}"
    program.parent.mkdir(parents=True, exist_ok=True)
    (WORK / "rules.inc").write_text(call(sys.executable, ROOT / "csrc/list_rules.py"))
    define = [f"-DFASTOPT_ISA={isa}", f'-DFASTOPT_ISA_NAME="{isa}"', "-DFASTOPT_VECTOR_BYTES=16"]
    define.append(f"-DFASTOPT_SIMD_{isa.upper()}")
    files = [*(f"{ROOT}/csrc/{name}.cpp" for name in SOURCES)]
    files += [f"{HERE}/kernels.cpp", f"-I{ROOT}/csrc", f"-I{WORK}"]
    quiet = ["-Wno-maybe-uninitialized"] if compiler == "GCC" else []
    flags = ["-std=c++17", "-static", *FLAGS, *STRICT, *quiet]
    call(*command, *flags, *define, *files, "-o", program)
    return call(*run, program).splitlines()


def compare(compiler: str) -> int:
    """How many cases agree; Failed where one does not."""
    cross, native = find_cross(compiler), find_compiler("GCC") or find_compiler("clang")
    assert cross is not None
    assert native is not None
    check_flags()
    expected = lines([native[0]], "native", "baseline", [])
    got = lines(cross, compiler, "neon", ["qemu-aarch64"])
    differing = [f"{a}\n{b}" for a, b in zip(expected, got, strict=True) if a != b]
    if differing or not expected:
        raise Failed("\n".join([f"{len(differing)} of {len(expected)} differ", *differing]))
    return len(expected)
