"""What an import costs: each process gives a sample of both clocks, the table says what is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import importing, record
from benchmarks.method import QUICK


def test_every_process_gives_a_sample_of_each_clock(quick_benchmarks: tuple[Path, str]) -> None:
    (row,) = record.load(quick_benchmarks[0] / "import.json")["rows"]
    for clock in ("samples", "processor"):
        assert {name: len(times) for name, times in row[clock].items()} == dict.fromkeys(
            ("torch", "fastopt"), QUICK.max_rounds
        )
        assert all(time > 0 for times in row[clock].values() for time in times)


def _row(seconds: float, verdict: str) -> dict[str, Any]:
    samples = {"torch": [1.5], "fastopt": [seconds]}
    return {"samples": samples, "processor": samples, "goal": 0.05, "verdict": verdict}


@pytest.mark.parametrize(
    ("seconds", "verdict", "shown"),
    [(0.03, "ok", "30.0 [30.0, 30.0]"), (0.06, "short", "**60.0** [60.0, 60.0]")],
)
def test_above_the_goal_is_bold(seconds: float, verdict: str, shown: str) -> None:
    (line,) = importing.table({"rows": [_row(seconds, verdict)]}).to_dict("records")
    assert (line["ms [quartiles]"], line["goal"], line["torch, s"]) == (shown, "50", "1.50")
    assert line[""] == verdict.replace("ok", "")
