"""`python -m benchmarks compare`: what each kind compares, noise, exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare
from benchmarks.method import Spread


class Compare:
    """The command in this process: its output, once its exit code is the expected one."""

    def __init__(self, printed: pytest.CaptureFixture[str]) -> None:
        self.printed = printed

    def __call__(self, old: Path, new: Path, code: int) -> str:
        parser = argparse.ArgumentParser()
        compare.add_arguments(parser)
        try:
            found = compare.main(parser.parse_args([str(old), str(new)]))
        except SystemExit as exit_:
            found = exit_.code
        out, err = self.printed.readouterr()
        assert found == code, out + err
        return out + err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Compare:
    monkeypatch.setenv("COLUMNS", "300")
    return Compare(capsys)


def _ratio(median: float, width: float = 0.02) -> dict[str, float]:
    return {"median": median, "q1": median * (1 - width), "q3": median * (1 + width)}


def _record(kind: str, **parts: Any) -> dict[str, Any]:
    return {"kind": kind, "schema": 1, "machine": {"cpu": "x", "threads": 2}, **parts}


def _cpu(median: float, width: float = 0.02, verdict: str = "ok") -> dict[str, Any]:
    row = {"id": "mlp/Adam/fp32", "verdict": verdict, "ratio": _ratio(median, width)}
    return _record("cpu", rows=[row])


def _race(speed: float) -> dict[str, list[float]]:
    """Fastopt `speed` times as fast as torch.fused, whatever the machine did."""
    return {
        "fastopt": [1.0, 2.0, 1.1],
        "torch.fused": [speed, 2 * speed, 1.1 * speed],
        "floor": [1.0] * 3,
    }


def _curves(speed: float, wrong: tuple[str, ...] = ()) -> dict[str, Any]:
    point = {"sweep": "elements", "x": 100, "wrong": list(wrong), "samples": _race(speed)}
    return _record("curves", points=[point])


def _micro(speed: float) -> dict[str, Any]:
    row = {
        "id": "rule/Adam",
        "verdict": "ok",
        "base": "stream",
        "samples": {"stream": [speed, 2 * speed], "avx2": [1.0, 2.0]},
        "of_base": {"avx2": _ratio(1 / speed)},
    }
    return _record("micro", rows=[row])


def _train(speed: float) -> dict[str, Any]:
    row = {
        "id": "mlp/adam",
        "verdict": "ok",
        "wrong": [],
        "ratio": _ratio(1.0),
        "ratios": {"torch.fused": _ratio(speed), "torch.default": _ratio(3.0)},
    }
    return _record("train", rows=[row])


def _tail(speed: float) -> dict[str, Any]:
    return _cpu(speed) | {"kind": "tail"}


def _gpu(speed: float) -> dict[str, Any]:
    return _cpu(speed) | {"kind": "gpu"}


KINDS = {
    "cpu": (_cpu, "mlp/Adam/fp32"),
    "tail": (_tail, "mlp/Adam/fp32"),
    "curves": (_curves, "elements 100: torch.fused / fastopt"),
    "micro": (_micro, "rule/Adam: avx2"),
    "train": (_train, "mlp/adam: torch.fused"),
    "gpu": (_gpu, "mlp/Adam/fp32"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_slower_is_a_regression_and_quicker_is_none(
    kind: str, tmp_path: Path, run: Compare
) -> None:
    make, name = KINDS[kind]
    quick, slow = tmp_path / "quick.json", tmp_path / "slow.json"
    quick.write_text(json.dumps(make(2.0)))
    slow.write_text(json.dumps(make(1.5)))
    (move,) = (move for move in compare.moves(make(2.0), make(1.5)) if move.beyond_noise)
    assert (move.id, move.change) == (name, -0.25)
    worse = run(quick, slow, code=1)
    assert name in worse
    assert "-25%" in worse
    assert "+33%" in run(slow, quick, code=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run_has_not_moved(kind: str) -> None:
    record = KINDS[kind][0](2.0)
    moves = compare.moves(record, record)
    assert moves
    assert not any(move.beyond_noise for move in moves)


@pytest.mark.parametrize(
    ("old", "new", "moved"),
    [
        ((2.0, 0.05), (1.5, 0.05), True),
        ((2.0, 0.05), (2.5, 0.05), True),
        ((2.0, 0.2), (1.5, 0.2), False),  # the spreads meet
        ((2.0, 0.005), (1.95, 0.005), False),  # apart, but by less than runs differ
    ],
)
def test_moves_beyond_noise(
    old: tuple[float, float], new: tuple[float, float], moved: bool
) -> None:
    (move,) = compare.moves(_cpu(*old), _cpu(*new))
    assert move.beyond_noise is moved


def test_ratios_of_a_curve_are_those_of_its_rounds() -> None:
    assert compare.speeds(_curves(2.0)) == {
        "elements 100: torch.fused / fastopt": Spread(2.0, 2.0, 2.0)
    }


@pytest.mark.parametrize("broken", [_cpu(1.5, verdict="wrong"), _curves(1.5, wrong=("fastopt",))])
def test_a_wrong_result_is_a_regression(
    broken: dict[str, Any], tmp_path: Path, run: Compare
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(KINDS[broken["kind"]][0](1.5)))
    new.write_text(json.dumps(broken))
    assert "wrong result" in run(old, new, code=1)


def test_a_wrong_peer_is_none(tmp_path: Path, run: Compare) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(_curves(1.5)))
    new.write_text(json.dumps(_curves(1.5, wrong=("torch.fused",))))
    run(old, new, code=0)


def test_what_is_missing_is_said(tmp_path: Path, run: Compare) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    both = _cpu(1.5)
    gone = {"id": "gone", "verdict": "ok", "ratio": _ratio(1.0)}
    old.write_text(json.dumps(both | {"rows": [*both["rows"], gone]}))
    new.write_text(json.dumps(both))
    assert f"gone: not in {new}" in run(old, new, code=0)


def test_what_cannot_be_compared_is_no_regression(tmp_path: Path, run: Compare) -> None:
    cpu, micro, other = (tmp_path / f"{name}.json" for name in ("cpu", "micro", "other"))
    cpu.write_text(json.dumps(_cpu(1.5)))
    micro.write_text(json.dumps(_micro(1.5)))
    other.write_text("[]")
    assert "two of one kind are needed" in run(cpu, micro, code=2)
    assert "is not a record of schema 1" in run(cpu, other, code=2)
    assert "No such file" in run(cpu, tmp_path / "none.json", code=2)
