"""Free-threaded Python: importing turns the GIL on, and where it is forced off is refused."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig

import pytest

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
REFUSED = "ImportError: fastopt needs the GIL"


def python(code: str, gil: str = "") -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | ({"PYTHON_GIL": gil} if gil else {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not FREE_THREADED, reason="asks a free-threaded interpreter")
def test_importing_turns_the_gil_on() -> None:
    """And Python says so, naming the core."""
    found = python("import sys, fastopt; print(sys._is_gil_enabled())")
    assert (found.returncode, found.stdout.strip()) == (0, "True"), found.stderr
    assert "RuntimeWarning: The global interpreter lock (GIL) has been enabled" in found.stderr
    assert "fastopt._core" in found.stderr


@pytest.mark.skipif(not FREE_THREADED, reason="asks a free-threaded interpreter")
def test_forced_off_it_is_refused() -> None:
    found = python("import fastopt", gil="0")
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith(REFUSED)
    assert "PYTHON_GIL=0" in last


def test_the_refusal_itself() -> None:
    """A stand-in for the above, on any Python: its answer is forged, all else is real."""
    forge = "import sys; sys._is_gil_enabled = lambda: {}; import fastopt"
    found = python(forge.format(False))
    assert found.returncode != 0
    assert found.stderr.strip().splitlines()[-1].startswith(REFUSED)
    assert python(forge.format(True)).returncode == 0
