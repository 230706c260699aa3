"""`make wheels`: the source distribution, the wheels built from it, each put to work.

A wheel for every Python here by the processor, and one by cross compiler for AArch64; then, in a
fresh environment whose PATH has no compiler, beside the lowest and the newest torch, what
installed.py lists; for AArch64 under an emulator what emulated.py lists. Needs GCC.
The wheels go to build/wheels, what was done to build/wheels/wheels.md.

    make wheels                          # everything
    make wheels ARGS="3.12 2.13"         # of a Python, a torch only; also: x86_64, aarch64
    make wheels ARGS=build               # without putting them to work; sdist: no wheels either
"""

from __future__ import annotations

import platform
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "matrix")]

import building  # noqa: E402
import emulated  # noqa: E402
import installed  # noqa: E402
from building import WORK  # noqa: E402
from machine import PYTHONS, Failed, environment, find_python, minor, torch_releases  # noqa: E402

# Free-threaded Pythons build their own: the core turns the GIL on there.
LABELS = [label for label in PYTHONS if not label.endswith("t")]
MACHINES = list(dict.fromkeys([platform.machine(), "aarch64"]))
NEEDED_BYTES = 12e9  # a torch with its CUDA libraries unpacks to 7 GB
NOT_RUN = "not run"


class Rows:
    """What was done so far; each is printed as soon as it is known."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def add(self, what: str, outcome: str, detail: str) -> None:
        print(what, outcome, detail, sep="  ", flush=True)
        self.rows.append((what, outcome, detail))
        WORK.mkdir(parents=True, exist_ok=True)
        lines = ["| wheel | outcome | |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self.rows]
        (WORK / "wheels.md").write_text("\n".join(lines) + "\n")

    def run(self, what: str, call: Callable[[], tuple[str, str]]) -> bool:
        """A row of what `call` says was done and found; False where it failed."""
        start = time.monotonic()
        try:
            outcome, detail = call()
        except Failed as error:
            print(error, flush=True)
            outcome, detail = "failed", (str(error).strip().splitlines() or ["no output"])[-1]
        self.add(what, outcome, f"{detail}, {time.monotonic() - start:.0f} s")
        return outcome != "failed"


def put_to_work(rows: Rows, python: Path, wheel: Path, release: str, is_native: bool) -> None:
    what = f"{wheel.name} with torch {release}"
    reason = "" if is_native else emulated.missing()
    free = shutil.disk_usage(WORK).free
    if free < NEEDED_BYTES:
        reason = f"{free / 1e9:.0f} GB of disk free, {NEEDED_BYTES / 1e9:.0f} needed"
    if reason:
        return rows.add(what, NOT_RUN, reason)

    def check() -> tuple[str, str]:
        if is_native:
            return "passed", installed.check(python, wheel, release)
        return "passed", emulated.check(wheel, release)

    rows.run(what, check)


def one(rows: Rows, label: str, machine: str, torches: list[str], builds_only: bool) -> None:
    """A wheel, built and put to work."""
    what, is_native = f"Python {label}, {machine}", machine == platform.machine()
    python = find_python(label)
    reason = building.lacking(machine)
    if python is None:
        reason = "no such interpreter on PATH or in pyenv"
    if python is None or reason:
        return rows.add(what, NOT_RUN, reason)
    made: list[Path] = []
    releases: list[str] = []

    def build() -> tuple[str, str]:
        pip = environment(python, WORK / f"py{label}")
        found = torch_releases(pip)
        releases.extend(r for r in found if minor(r) in torches)
        if not torches:
            releases.extend(dict.fromkeys([found[0], found[-1]]))
        wheel = building.build(pip, label, machine)
        made.append(wheel)
        return wheel.name, building.needs(wheel)

    if not rows.run(what, build) or builds_only:
        return
    if not is_native:
        # torch's wheels for AArch64 bring CUDA's libraries from 2.11 on.
        releases = releases[:1] if not emulated.missing() and emulated.label() == label else []
    for release in releases:
        put_to_work(rows, python, made[0], release, is_native)


def main(words: list[str]) -> int:
    labels = [word for word in words if word in LABELS] or LABELS
    machines = [word for word in words if word in MACHINES] or MACHINES
    torches = [word for word in words if re.fullmatch(r"2\.\d+", word)]
    unknown = set(words) - {*LABELS, *MACHINES, *torches, "build", "sdist"}
    if unknown:
        allowed = ", ".join([*LABELS, "2.10 and later", *MACHINES, "build", "sdist"])
        sys.exit(f"make wheels: {sorted(unknown)} is none of its parts: {allowed}")
    rows = Rows()

    def sdist() -> tuple[str, str]:
        archive = building.sdist()
        return archive.name, f"{archive.stat().st_size / 1e6:.1f} MB"

    if rows.run("source distribution", sdist) and "sdist" not in words:
        for machine in machines:
            for label in labels:
                one(rows, label, machine, torches, "build" in words)
    outcomes = [outcome for _, outcome, _ in rows.rows]
    return int("failed" in outcomes or set(outcomes) == {NOT_RUN})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
