"""`python -m benchmarks compare`: what each kind compares, noise, exit codes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare


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


# What the machine did in each round, to everybody alike.
MACHINE = [1.0, 2.0, 1.1, 1.3, 1.0]


def _samples(
    speed: float, width: float = 0.02, peer: str = "torch.fused"
) -> dict[str, list[float]]:
    """Fastopt `speed` times as fast as a peer, give or take `width`, whatever the machine did."""
    wobble = [1 - width, 1, 1 + width, 1 - width, 1 + width]
    peers = [speed * a * b for a, b in zip(MACHINE, wobble, strict=True)]
    return {"fastopt": MACHINE, peer: peers, "floor": [1.0] * 5}


def _record(kind: str, **row: Any) -> dict[str, Any]:
    machine = {"cpu": "x", "threads": 2}
    rows = [{"id": "a row", "verdict": "ok", "wrong": [], **row}]
    return {"kind": kind, "schema": 1, "machine": machine, "rows": rows}


def _cpu(speed: float, width: float = 0.02, **more: Any) -> dict[str, Any]:
    return _record("cpu", samples=_samples(speed, width), **more)


def _by_isa(speed: float) -> dict[str, Any]:
    samples = _samples(speed)
    return _record("curves", samples={"fastopt.avx2": samples.pop("fastopt"), **samples})


def _stats(speed: float) -> dict[str, Any]:
    return _record("tail", samples=_samples(speed, peer="fastopt.plain"))


def _micro(speed: float) -> dict[str, Any]:
    samples = _samples(speed)
    steps = {"stream": samples["torch.fused"], "avx2": samples["fastopt"]}
    return _record("micro", base="stream", samples=steps)


KINDS = {
    "cpu": (_cpu, "a row: torch.fused / fastopt"),
    "tail": (_stats, "a row: fastopt.plain / fastopt"),
    "curves": (_by_isa, "a row: torch.fused / fastopt.avx2"),
    "micro": (_micro, "a row: stream / avx2"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_slower_is_a_regression_and_quicker_is_none(
    kind: str, tmp_path: Path, run: Compare
) -> None:
    make, name = KINDS[kind]
    quick, slow = tmp_path / "quick.json", tmp_path / "slow.json"
    quick.write_text(json.dumps(make(2.0)))
    slow.write_text(json.dumps(make(1.5)))
    worse = run(quick, slow, code=1)
    assert name in worse
    assert "-25%" in worse
    assert "+33%" in run(slow, quick, code=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_run_has_not_moved(kind: str, tmp_path: Path, run: Compare) -> None:
    same = tmp_path / "same.json"
    same.write_text(json.dumps(KINDS[kind][0](2.0)))
    assert "0 of 1 ratios moved" in run(same, same, code=0)


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
    assert compare.moves(_cpu(*old), _cpu(*new))["moved"].tolist() == [moved]


def test_a_wrong_result_is_a_regression(tmp_path: Path, run: Compare) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(_cpu(1.5)))
    for broken in (_cpu(1.5, verdict="wrong"), _cpu(1.5, wrong=["fastopt"])):
        new.write_text(json.dumps(broken))
        assert "wrong result" in run(old, new, code=1)


def test_a_wrong_peer_is_none(tmp_path: Path, run: Compare) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(_cpu(1.5)))
    new.write_text(json.dumps(_cpu(1.5, wrong=["torch.foreach"])))
    run(old, new, code=0)


def test_what_is_missing_is_said(tmp_path: Path, run: Compare) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    both, gone = _cpu(1.5), _cpu(1.5)["rows"][0] | {"id": "gone"}
    old.write_text(json.dumps(both | {"rows": [*both["rows"], gone]}))
    new.write_text(json.dumps(both))
    assert f"gone: torch.fused / fastopt: not in {new}" in run(old, new, code=0)


def test_what_cannot_be_compared_is_no_regression(tmp_path: Path, run: Compare) -> None:
    cpu, micro, other = (tmp_path / f"{name}.json" for name in ("cpu", "micro", "other"))
    cpu.write_text(json.dumps(_cpu(1.5)))
    micro.write_text(json.dumps(_micro(1.5)))
    other.write_text("[]")
    assert "two of one kind are needed" in run(cpu, micro, code=2)
    assert "is not a record of schema 1" in run(cpu, other, code=2)
    assert "No such file" in run(cpu, tmp_path / "none.json", code=2)
