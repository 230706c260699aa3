"""What this machine has: interpreters, compilers, releases of torch; and where work is kept."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "matrix"
# t: free-threaded. Not 3.13t: apache-tvm-ffi, whose dlpack.h the build takes, has no wheel for it.
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14", "3.14t")
COMPILERS = ("GCC", "clang")
OLDEST_TORCH = (2, 10)


class Failed(Exception):
    """A command that failed; the whole of its output."""


def call(*command: str | Path, **options: object) -> str:
    """What a command prints, on both streams."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    if done.returncode:
        raise Failed(done.stdout)
    return str(done.stdout)


def find_python(label: str) -> Path | None:
    """The newest interpreter of this label, on PATH or among pyenv's, that runs and has venv."""
    names = (f"python{label}", f"python{label.rstrip('t')}")
    candidates = [Path(found) for name in names if (found := shutil.which(name))]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    candidates += sorted(pyenv.glob(f"{label.rstrip('t')}.*/bin/python"), reverse=True)
    ask = (
        "import ensurepip, sys, sysconfig, venv;"
        "t = 't' * bool(sysconfig.get_config_var('Py_GIL_DISABLED'));"
        "print('%d.%d' % sys.version_info[:2] + t)"
    )
    for candidate in candidates:
        try:
            if call(candidate, "-c", ask).strip() == label:
                return candidate
        except Failed:  # a shim of a version that is not switched on
            continue
    return None


def find_compiler(name: str) -> tuple[str, str] | None:
    """A C++ compiler's command and its version; of several clang, the newest."""
    commands = {"GCC": ["g++"], "clang": ["clang++", *(f"clang++-{n}" for n in range(30, 13, -1))]}
    for command in commands[name]:
        if shutil.which(command):
            return command, call(command, "-dumpfullversion", "-dumpversion").strip()
    return None


def torch_releases(python: Path) -> list[str]:
    """The last patch of each minor release that pip can see for this interpreter, oldest first."""
    text = call(python, "-m", "pip", "index", "versions", "torch")
    versions = re.search(r"Available versions: (.*)", text)
    newest: dict[tuple[int, int], str] = {}
    for version in versions[1].split(", ") if versions else []:
        major, minor = (int(part) for part in version.split(".")[:2])
        if (major, minor) >= OLDEST_TORCH:
            newest.setdefault((major, minor), version)
    return [newest[key] for key in sorted(newest)]


def minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def fresh(folder: Path) -> Path:
    """An empty folder in place of whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def environment(python: Path, folder: Path, packages: Sequence[str | Path] = ()) -> Path:
    """A new virtual environment with the newest pip and some packages: its interpreter."""
    call(python, "-m", "venv", fresh(folder))
    install(folder / "bin" / "python", "--upgrade", "pip", *packages)
    return folder / "bin" / "python"


def install(python: Path, *what: str | Path) -> None:
    """Rather an older release than one that has no wheel for this Python and would be compiled."""
    call(python, "-m", "pip", "install", "--quiet", "--prefer-binary", *what)


def sources() -> list[Path]:
    """The files that a cell depends on; without build products, which git does not know."""
    listed = call("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard")
    return [ROOT / name for name in sorted(listed.splitlines()) if (ROOT / name).is_file()]


def copy_tree(to: Path) -> Path:
    """The tree without the package and its sources, so that only the wheel can be imported."""
    tree = fresh(to)
    for file in sources():
        name = file.relative_to(ROOT)
        if name.parts[0] not in ("fastopt", "csrc"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tree / name)
    return tree


def digest(*tests: str) -> str:
    """Of the sources and these names: a result is kept for as long as it tells about them."""
    parts = ("csrc/", "fastopt/", "tests/", "CMakeLists.txt", "pyproject.toml")
    total = hashlib.sha256(" ".join(tests).encode())
    for file in sources():
        name = str(file.relative_to(ROOT))
        if name.startswith(parts) and not (
            name.startswith("tests/matrix/") and name.endswith("py")
        ):
            total.update(name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]
