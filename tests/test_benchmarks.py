"""Benchmarks: shapes, statistics, the check of results, the commands end to end. Never times."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from support import run_benchmarks
from torch import Tensor

from benchmarks import (
    contestants,
    cpu,
    curves,
    everything,
    libraries,
    markdown,
    method,
    race,
    shapes,
)
from benchmarks.problem import ALGORITHMS, DTYPES, Problem

KNOWN = {"gpt2": (148, 124_439_808), "resnet50": (161, 25_557_032), "vit-b16": (152, 86_567_656)}


@pytest.mark.parametrize("work", KNOWN)
def test_shapes_have_the_networks_known_totals(work: str) -> None:
    generated = shapes.WORKS[work]()
    assert (len(generated), shapes.numel(generated)) == KNOWN[work]


def test_mlp_shapes() -> None:
    assert shapes.mlp() == [(10, 784), (10,), (10, 10), (10,)]


def test_spread_interpolates_quartiles() -> None:
    assert method.spread([5.0, 1.0, 2.0, 4.0, 3.0]) == method.Spread(3.0, 2.0, 4.0)
    assert method.spread([1.0, 2.0]) == method.Spread(1.5, 1.25, 1.75)
    assert method.spread([7.0]) == method.Spread(7.0, 7.0, 7.0)
    assert method.Spread(2.0, 1.0, 4.0).relative == 1.5


def test_paired_ratios_stay_in_their_round() -> None:
    assert method.paired([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]


def test_plan_bounds_rounds() -> None:
    plan = method.Plan(budget=1.0, min_rounds=7, max_rounds=100)
    assert [plan.rounds(cost) for cost in (1.0, 0.05, 1e-6)] == [7, 20, 100]


def test_everybody_goes_first_and_after_everybody() -> None:
    turns: list[str] = []
    steps = {name: lambda name=name: turns.append(name) for name in "abc"}
    plan = method.Plan(budget=0.0, min_rounds=6, min_sample=0.0)
    samples = method.interleave(steps, plan)
    assert {name: len(times) for name, times in samples.items()} == dict.fromkeys("abc", 6)
    rounds = ["".join(turns[i : i + 3]) for i in range(len(turns) - 18, len(turns), 3)]
    assert rounds == ["abc", "cba", "bca", "acb", "cab", "bac"]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_bytes_count_the_state_torch_keeps(name: str) -> None:
    algorithm = ALGORITHMS[name]
    weight = torch.ones(5, requires_grad=True)
    weight.grad = torch.ones(5)
    optimizer = getattr(torch.optim, algorithm.cls)([weight], **algorithm.options)
    optimizer.step()
    states = [v for v in optimizer.state[weight].values() if getattr(v, "shape", None) == (5,)]
    assert algorithm.updates == 1 + len(states)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("maker", ["torch.default", "torch.foreach"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_torch_itself_is_right(name: str, maker: str, dtype: str) -> None:
    problem = Problem([(257,), (33, 5)], ALGORITHMS[name], DTYPES[dtype])
    assert contestants.build(contestants.MAKERS[maker], problem).error <= 1


class _OneBetaOff(torch.optim.Adam):
    """Adam with a slightly wrong second beta."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr, betas=(0.9, 0.9991))


class _SkipsLastElement(torch.optim.Adam):
    """Adam that leaves the last element of every tensor alone, as a lost tail would."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.view(-1)[-1] = 0
        return super().step(closure)


class _Nan(torch.optim.Adam):
    """Adam that leaves a NaN behind."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["params"][0].view(-1)[3] = torch.nan


@pytest.mark.parametrize("wrong", [_OneBetaOff, _SkipsLastElement, _Nan])
def test_a_wrong_optimizer_is_reported_wrong_and_not_timed(
    wrong: type[torch.optim.Optimizer],
) -> None:
    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        return wrong(params, **options)

    row = cpu.Row("mlp", "Adam", "fp32", "fused", goal=1.0)
    result = cpu.run_row(row, method.QUICK, contestants.MAKERS | {"fastopt": make}, quick=True)
    assert result["verdict"] == "wrong"
    assert result["wrong"] == ["fastopt"]
    assert "fastopt" not in result["samples"]


def test_quick_table_writes_every_sample(quick_benchmarks: tuple[Path, str]) -> None:
    folder, printed = quick_benchmarks
    saved = json.loads((folder / "cpu.json").read_text())
    assert [row["id"] for row in saved["rows"]] == [row.id for row in cpu.ROWS]
    for row in saved["rows"]:
        assert row["id"] in printed
        assert row["verdict"] == "right"
        assert row["wrong"] == [name for name, error in row["errors"].items() if error > 1]
        racers = {"fastopt", "floor", *contestants.PEERS[row["against"]]}
        assert len(row["rounds"]) == len(racers)  # everybody was built first once
        racers -= {*row["wrong"]}  # torch 2.13's fused SGD in bfloat16
        assert {name: len(times) for name, times in row["samples"].items()} == dict.fromkeys(
            racers, sum(row["rounds"])
        )
    assert saved["machine"]["threads"] == torch.get_num_threads()
    assert saved["versions"]["torch"] == torch.__version__


def _verdict(ratios: list[float], floor_ratios: list[float]) -> str:
    row = cpu.Row("mlp", "Adam", "fp32", "fused", goal=1.0, floor_goal=1.1)
    ones = [1.0] * len(ratios)
    floors = [1 / ratio for ratio in floor_ratios]
    samples = {"fastopt": ones, "torch.fused": ratios, "floor": floors}
    verdict: str = cpu.conclude(row, race.Outcome({"fastopt": 0.5}, samples), quick=False)[
        "verdict"
    ]
    return verdict


def test_verdicts() -> None:
    assert _verdict([1.0, 1.1, 1.2], [1.0, 1.0, 1.0]) == "ok"
    assert _verdict([0.9, 0.9, 1.2], [1.0, 1.0, 1.0]) == "short"
    assert _verdict([1.0, 1.1, 1.2], [1.2, 1.2, 1.2]) == "short"
    assert _verdict([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]) == "noisy"


def test_best_peer_is_the_quicker_one() -> None:
    row = cpu.Row("mlp", "RMSprop", "fp32", "best", goal=2.0)
    samples = {
        "fastopt": [1.0, 2.0],
        "torch.default": [3.0, 6.0],
        "torch.foreach": [2.0, 4.0],
        "floor": [1.0, 1.0],
    }
    result = cpu.conclude(row, race.Outcome({"fastopt": 0.5}, samples), quick=False)
    assert (result["peer"], result["ratio"]["median"], result["verdict"]) == (
        "torch.foreach",
        2.0,
        "ok",
    )


def test_one_that_raises_is_left_out_with_its_reason() -> None:
    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        raise RuntimeError("no compiler\nat all")

    problem = Problem([(33,)], ALGORITHMS["Adam"], DTYPES["fp32"])
    makers = contestants.MAKERS | {"torch.compiled": make}
    outcome = race.race(problem, ["fastopt", "torch.compiled"], method.QUICK, makers)
    assert outcome.failed == {"torch.compiled": "RuntimeError: no compiler"}
    assert outcome.samples.keys() == {"fastopt", "floor"}


@pytest.mark.parametrize(("off", "right"), [(0.01, True), (0.2, False)])
def test_a_coarse_result_is_judged_by_its_mean_error(off: float, right: bool) -> None:
    class Coarse(torch.optim.Adam):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            (param,) = self.param_groups[0]["params"]
            before = param.clone()
            super().step(closure)
            noise = torch.randn(param.shape, generator=torch.Generator().manual_seed(1))
            param.add_((param - before) * noise * off)

    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        return Coarse(params, **options)

    problem = Problem([(1000,)], ALGORITHMS["Adam"], DTYPES["fp32"])
    assert (contestants.build(make, problem, coarse=0.05).error <= 1) is right
    assert contestants.build(make, problem).error > 1


def test_quick_peers_name_everybody(quick_benchmarks: tuple[Path, str]) -> None:
    folder, printed = quick_benchmarks
    for row in json.loads((folder / "peers.json").read_text())["rows"]:
        timed = row["samples"].keys() - {"floor"}
        assert timed >= {"fastopt", "torch.default", "torch.foreach"}
        named = timed | {*row["absent"]} | {*row["wrong"]}
        assert named == libraries.LIBRARIES.keys() | libraries.GPU_ONLY.keys()
        assert row["bytes"]["fastopt"] == row["bytes_per_param"]
        assert all(name in printed for name in named)


def test_all_writes_everything_that_the_readme_is_made_from(
    quick_benchmarks: tuple[Path, str],
) -> None:
    folder, printed = quick_benchmarks
    written = {path.name for path in folder.iterdir()}
    assert written >= {f"{name}.json" for name in everything.MEASUREMENTS}
    assert written >= {"report.html", "tables.md"}
    assert any(name.endswith(".png") for name in written)
    tables = (folder / "tables.md").read_text()
    assert tables in printed
    for row in cpu.ROWS:
        assert f"| {row.work} | {row.algorithm}, {row.dtype} |" in tables


def test_markdown_is_bold_below_a_goal_and_names_the_wrong() -> None:
    row = cpu.Row("mlp", "Adam", "fp32", "any", goal=2.0, floor_goal=1.1)
    samples = {"fastopt": [1.0], "torch.default": [1.5], "torch.fused": [1.8], "floor": [0.5]}
    errors = {"fastopt": 0.5, "torch.foreach": 7.0}
    result = cpu.conclude(row, race.Outcome(errors, samples), quick=False)
    about = {"work": "mlp", "algorithm": "Adam", "dtype": "fp32", "goal": 2.0}
    *_, line = markdown.goals({"rows": [about | result]})
    assert "torch.default | **1.50x** [1.50, 1.50] | 2x | **2.00** |" in line
    assert line.endswith("| short; torch.foreach is wrong |")


def test_list_and_only() -> None:
    assert run_benchmarks("cpu", "--list", "--only", "mlp").split() == [
        "mlp/Adam/fp32",
        "mlp/RMSprop/fp32",
        "mlp/SGD-plain/fp32",
    ]
    run_benchmarks("cpu", "--only", "nothing", code=1)


def test_quick_curves_have_every_sweep(quick_benchmarks: tuple[Path, str]) -> None:
    _core = pytest.importorskip("fastopt")._core
    points = json.loads((quick_benchmarks[0] / "curves.json").read_text())["points"]
    assert {point["sweep"] for point in points} == {"elements", "tensors", "threads", "isa"}
    isas = {f"fastopt.{isa}" for isa in _core.supported_isas()}
    for point in points:
        ours = isas if point["sweep"] == "isa" else {"fastopt"}
        assert point["samples"].keys() == ours | {"torch.fused", "floor"}


def test_a_curve_over_instruction_sets_runs_each_and_restores_the_best() -> None:
    _core = pytest.importorskip("fastopt")._core
    ran: dict[str, str] = {}

    class Noting(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            ran[self.asked] = _core.isa()
            return super().step(closure)

    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        return Noting(params, **options)

    best = _core.isa()
    for isa in _core.supported_isas():
        weight = torch.ones(3, requires_grad=True)
        weight.grad = torch.ones(3)
        optimizer = curves.with_isa(make, isa)("Adam", [weight], {"lr": 1e-3})
        optimizer.asked = isa
        optimizer.step()
        assert _core.isa() == best
    assert ran == {isa: isa for isa in _core.supported_isas()}
