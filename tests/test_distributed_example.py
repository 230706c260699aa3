"""examples.distributed: saved by two processes, gone on with by two and by one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def train(processes: int, *arguments: str) -> str:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(processes), "-m", "examples.distributed"),
            *("--net", "mlp", "--steps", "8", *arguments),
        ],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=240,  # ends a hang
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_example(tmp_path: Path) -> None:
    out = ("--out", str(tmp_path))
    first = train(2, *out)
    assert "local shards of S(0)" in first
    loss = float(re.findall("loss ([0-9.]+), accuracy", first)[0])
    again = train(2, *out, "--resume")
    assert f"loss {loss:.4f}, accuracy" in again
    assert "not interrupted: equal to the bit" in again
    other = train(1, *out, "--resume")
    assert abs(float(re.findall("loss ([0-9.]+), accuracy", other)[0]) - loss) < 1e-3
    if "not interrupted: equal to the bit" not in other:
        (apart,) = re.findall(r"not interrupted: at most (\S+) apart: gradients are", other)
        assert 0 < float(apart) < 1e-5
