"""Micro-benchmarks and the profile: rows, checks, parts that add up. Never times."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import compare, micro, profiling, record
from benchmarks.method import QUICK
from fastopt import _core


def test_quick_micro_checks_and_times_every_row(quick_benchmarks: tuple[Path, str]) -> None:
    for row in record.load(quick_benchmarks[0] / "micro.json")["rows"]:
        rounds = {len(times) for times in row["samples"].values()}
        assert rounds == {QUICK.max_rounds}
        assert {*row["errors"]} == {*_core.supported_isas()} == {*row["samples"]} - {row["base"]}


def test_a_wrong_kernel_is_not_timed() -> None:
    def never() -> None:
        raise AssertionError("timed")

    kernel = micro.Kernel(1, "copy", never, never, lambda: 1.5)
    found = micro.run_row(lambda: kernel, QUICK)
    isas = _core.supported_isas()
    assert (found["verdict"], found["wrong"], found["samples"]) == ("wrong", isas, {})
    lines = micro.table({"rows": [{"id": "x", **found}]})["contestant"]
    assert list(lines) == [f"{isa} is **wrong**" for isa in isas]


@pytest.mark.parametrize("row", ["rule/Adam/bf16/in memory", "convert/bfloat16/narrow"])
def test_rows_leave_the_instruction_set_as_it_was(row: str) -> None:
    before = _core.isa()
    micro.run_row(micro.kernels(quick=True)[row], QUICK)
    assert _core.isa() == before


MEDIANS = {
    "step": 100.0,
    "checks": 60.0,
    "writes": 35.0,
    "idle step": 4.0,
    "idle engine": 1.0,
    "no gradients": 9.0,
    "no gradients, .grad": 3.0,
    ".grad": 10.0,
    "reads": 30.0,
    "versions": 5.0,
    "region": 4.0,
    "no region": 1.0,
}


def test_parts_add_up_to_the_step() -> None:
    parts = profiling.parts(MEDIANS)
    top = {part.name: part.seconds for part in parts if not part.of}
    assert sum(top.values()) == MEDIANS["step"]
    assert (top["Python around the engine"], top["not attributed"]) == (3, 2)
    for half in (profiling.CHECKS, profiling.WRITES):
        assert sum(part.seconds for part in parts if part.of == half) == top[half]


def test_quick_profile_takes_every_case_apart(quick_benchmarks: tuple[Path, str]) -> None:
    folder, printed = quick_benchmarks
    for row in record.load(folder / "profile.json")["rows"]:
        medians = profiling.medians(row["samples"])
        parts = profiling.parts(medians)
        assert all(part.name in printed for part in parts)
        assert sum(part.seconds for part in parts if not part.of) == pytest.approx(medians["step"])
        # compare sees each part move, beside what no change here can move
        compared = compare.speeds({"rows": [row]})
        assert f"{row['id']}: versions / reads" in compared


def test_probes_do_what_a_step_does() -> None:
    params = [torch.zeros(2, 3, requires_grad=True), torch.zeros(5, requires_grad=True)]
    params[1].grad = torch.zeros(5)
    assert _core.read_tensors(params) == 11
    assert _core.read_grads(params) == 1
    with pytest.raises(_core.Refused, match="is a list"):
        _core.read_tensors([[]])  # type: ignore[list-item]
    with pytest.raises(_core.Refused, match="plain tensors"):
        _core.read_grads([[]])  # type: ignore[list-item]
    assert _core.useful_threads(0, 8) == 1
    assert _core.useful_threads(1 << 30, 8) == 8
