r"""An AArch64 wheel put to work on another processor: in a Debian that qemu's user mode runs.

AARCH64_ROOT names its folder, with a Python in it. Nothing of it is run to make it:

    mmdebstrap --arch=arm64 --variant=extract --include=python3,python3-pip-whl,libstdc++6 \
        bookworm $AARCH64_ROOT
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from building import WORK
from installed import PACKAGES, last_line
from machine import call, copy_tree, fresh

EMULATOR = "qemu-aarch64"
# A step of torch's and one of ours by the same gradients, by every rule, to the bit where the
# references say so. What starts other processes cannot run here: they would not be emulated.
TESTS = ("tests/test_reference.py", "-k", "test_steps")


def root() -> Path:
    return Path(os.environ.get("AARCH64_ROOT", ""))


def missing() -> str:
    """What this machine lacks to run AArch64's programs; nothing where it lacks nothing."""
    if not shutil.which(EMULATOR):
        return f"needs {EMULATOR} on PATH"
    if not (root() / "usr/bin/python3").exists():
        return "AARCH64_ROOT names no Debian with a Python"
    return ""


def python(*arguments: str | Path, path: str = "", cwd: Path | None = None) -> str:
    """What the emulated interpreter prints."""
    command = [EMULATOR, "-L", root(), root() / "usr/bin/python3", *arguments]
    return call(*command, cwd=cwd, env={**os.environ, "PYTHONPATH": path})


def label() -> str:
    """The emulated interpreter's: 3.11, say."""
    return python("-c", "import sys; print('%d.%d' % sys.version_info[:2])").strip()


def check(wheel: Path, release: str) -> str:
    """Installed beside one release of torch, imported, stepped; what the tests' last line says."""
    site, tree = fresh(WORK / "site"), copy_tree(WORK / "tree")
    pip = next((root() / "usr/share/python-wheels").glob("pip-*.whl")) / "pip"
    install: list[str | Path] = ["install", "--quiet", "--only-binary=:all:", "--target", site]
    python(pip, *install, wheel, f"torch=={release}", *PACKAGES)
    python("-m", "fastopt", path=str(site), cwd=tree)  # a checkout's own fastopt is not at hand
    quiet = ("-q", "-p", "no:cacheprovider")
    passed = last_line(python("-m", "pytest", *quiet, *TESTS, path=str(site), cwd=tree))
    shutil.rmtree(site)
    return f"{passed}, emulated"
