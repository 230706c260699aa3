"""Benchmarks: shapes, statistics, the check of results, the commands end to end. Never times."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import (
    __main__,
    contestants,
    cpu,
    everything,
    method,
    peers,
    plots,
    race,
    record,
    report,
    shapes,
)
from benchmarks.problem import ALGORITHMS, DTYPES, Problem
from fastopt import _core

README = Path(__file__).parents[1] / "README.md"

KNOWN = {
    "gpt2": (148, 124_439_808),
    "resnet50": (161, 25_557_032),
    "vit-b16": (152, 86_567_656),
    "mlp": (4, 784 * 10 + 10 + 10 * 10 + 10),
}


@pytest.mark.parametrize("work", KNOWN)
def test_shapes_have_the_networks_known_totals(work: str) -> None:
    generated = shapes.WORKS[work]()
    assert (len(generated), shapes.numel(generated)) == KNOWN[work]


def test_spreads_interpolate_quartiles() -> None:
    assert method.spreads({"a": [5.0, 1.0, 2.0, 4.0, 3.0]}) == {"a": method.Spread(3.0, 2.0, 4.0)}
    assert method.spreads({"a": [1.0, 2.0]}) == {"a": method.Spread(1.5, 1.25, 1.75)}
    assert method.spreads({"a": [7.0]}) == {"a": method.Spread(7.0, 7.0, 7.0)}
    assert method.Spread(2.0, 1.0, 4.0).relative == 1.5


def test_ratios_stay_in_their_round() -> None:
    """A machine that is half as fast for a while makes a spread of times, none of ratios."""
    ratios = method.ratios({"slow": [2.0, 4.0, 2.2], "fastopt": [1.0, 2.0, 1.1]}, "fastopt")
    assert ratios["slow"] == method.Spread(2.0, 2.0, 2.0)


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


class OneBetaOff(torch.optim.Adam):
    """Adam with a slightly wrong beta."""

    def __init__(self, params: Any, betas: Any = (0.9, 0.9991), **options: Any) -> None:
        super().__init__(params, betas=betas, **options)


class _SkipsLastElement(torch.optim.Adam):
    """Adam that leaves the last element of every tensor alone, as a lost tail would."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.view(-1)[-1] = 0
        return super().step(closure)


class Nan(torch.optim.Adam):
    """Adam that leaves a NaN behind."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["params"][0].view(-1)[3] = torch.nan


def maker_of(made: Callable[..., torch.optim.Optimizer]) -> contestants.Maker:
    return lambda cls, params, options: made(params, **options)


@pytest.mark.parametrize("wrong", [OneBetaOff, _SkipsLastElement, Nan])
def test_a_wrong_optimizer_is_reported_wrong_and_not_timed(
    wrong: type[torch.optim.Optimizer],
) -> None:
    row = cpu.Row("mlp", "Adam", "fp32", "fused", goal=1.0)
    result = cpu.run_row(row, method.QUICK, contestants.MAKERS | {"fastopt": maker_of(wrong)})
    assert (result["verdict"], result["wrong"]) == ("wrong", ["fastopt"])
    assert "fastopt" not in result["samples"]


Command = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """What `python -m benchmarks ARGUMENTS` prints, run in this process."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        assert __main__.main() == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("kind", everything.MEASUREMENTS)
def test_a_quick_run_has_every_row_and_finds_it_right(
    kind: str, quick_benchmarks: tuple[Path, str], command: Command
) -> None:
    folder, printed = quick_benchmarks
    saved = record.load(folder / f"{kind}.json")
    listed = command(kind, "--quick", "--list").splitlines()
    assert [row["id"] for row in saved["rows"]] == listed
    assert all(row["verdict"] == "right" for row in saved["rows"])
    assert all(f"{name}: right" in printed for name in listed)
    assert saved["machine"]["threads"] == torch.get_num_threads()
    assert saved["versions"]["torch"] == torch.__version__


def test_quick_table_writes_every_sample(quick_benchmarks: tuple[Path, str]) -> None:
    for row in record.load(quick_benchmarks[0] / "cpu.json")["rows"]:
        assert "isa" not in row
        assert row["wrong"] == [name for name, error in row["errors"].items() if error > 1]
        racers = {"fastopt", "floor", *cpu.PEERS[row["against"]]}
        assert len(row["rounds"]) == len(racers)  # everybody was built first once
        racers -= {*row["wrong"]}  # torch 2.13's fused SGD in bfloat16
        assert {name: len(times) for name, times in row["samples"].items()} == dict.fromkeys(
            racers, sum(row["rounds"])
        )


def _judged(samples: dict[str, list[float]], **more: Any) -> dict[str, Any]:
    about = {"work": "mlp", "algorithm": "Adam", "dtype": "fp32", "goal": 1.0, "floor_goal": None}
    about |= {"wrong": [], "bytes_per_param": 28, "elements": 7960}
    return cpu.judged(about | {"samples": samples} | more, quick=False)


@pytest.mark.parametrize(
    ("ratios", "floor_ratio", "verdict"),
    [
        ([1.0, 1.1, 1.2], 1.0, "ok"),
        ([0.9, 0.9, 1.2], 1.0, "short"),
        ([1.0, 1.1, 1.2], 1.2, "short"),
        ([1.0, 2.0, 3.0], 1.0, "noisy"),
    ],
)
def test_verdicts(ratios: list[float], floor_ratio: float, verdict: str) -> None:
    samples = {"fastopt": [1.0] * 3, "torch.fused": ratios, "floor": [1 / floor_ratio] * 3}
    assert _judged(samples, floor_goal=1.1)["verdict"] == verdict


def test_the_quickest_peer_counts() -> None:
    samples = {"fastopt": [1.0, 2.0], "floor": [1.0, 1.0]}
    samples |= {"torch.default": [3.0, 6.0], "torch.foreach": [2.0, 4.0]}
    (line,) = cpu.table({"rows": [_judged(samples)]}).to_dict("records")
    assert (line["against"], line["ratio [quartiles]"]) == ("torch.foreach", "2.00x [2.00, 2.00]")


def test_a_table_is_bold_below_a_goal_and_names_the_wrong() -> None:
    samples = {"fastopt": [1.0], "torch.default": [1.5], "torch.fused": [1.8], "floor": [0.5]}
    row = _judged(samples, goal=2.0, floor_goal=1.1, wrong=["torch.foreach"])
    (line,) = cpu.table({"rows": [row]}).to_dict("records")
    assert line["ratio [quartiles]"] == "**1.50x** [1.50, 1.50]"
    assert line["time / floor"] == "**2.00**"
    assert line[""] == "short; torch.foreach is wrong"


def test_one_that_raises_is_left_out_with_its_reason() -> None:
    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        raise RuntimeError("no compiler\nat all")

    problem = Problem([(33,)], ALGORITHMS["Adam"], DTYPES["fp32"])
    makers = {"fastopt": contestants.MAKERS["fastopt"], "torch.compiled": make}
    found = race.race(problem, makers, method.QUICK)
    assert found["absent"] == {"torch.compiled": "RuntimeError: no compiler"}
    assert found["samples"].keys() == {"fastopt", "floor"}


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

    make = maker_of(Coarse)
    problem = Problem([(1000,)], ALGORITHMS["Adam"], DTYPES["fp32"])
    assert (contestants.build(make, problem, coarse=0.05).error <= 1) is right
    assert contestants.build(make, problem).error > 1


def test_quick_peers_name_everybody(quick_benchmarks: tuple[Path, str]) -> None:
    folder, printed = quick_benchmarks
    for row in record.load(folder / "peers.json")["rows"]:
        timed = row["samples"].keys() - {"floor"}
        assert timed >= {"fastopt", "torch.default", "torch.foreach"}
        named = timed | {*row["absent"]} | {*row["wrong"]}
        assert named == peers.LIBRARIES.keys() | peers.GPU_ONLY.keys()
        assert row["bytes"]["fastopt"] == row["bytes_per_param"]
        assert all(name in printed for name in named)


def test_all_writes_everything_that_the_readme_is_made_from(
    quick_benchmarks: tuple[Path, str],
) -> None:
    folder, printed = quick_benchmarks
    written = {path.name for path in folder.iterdir()}
    assert written >= {"report.html", "tables.md"}
    assert any(name.endswith(".png") for name in written)
    tables = (folder / "tables.md").read_text()
    assert tables in printed
    for row in cpu.ROWS:
        assert f"| {row.work} | {row.algorithm}, {row.dtype} |" in tables


def test_documents_figures_are_those_of_the_results() -> None:
    """docs/results.md is what filling it anew makes of it, the README's rows are some of those."""
    files = sorted((README.parent / "benchmarks" / "results").glob("*/*.json"))
    records = [record.load(file) for file in files]
    results = (README.parent / "docs" / "results.md").read_text(encoding="utf-8")
    assert report.filled(results, records) == results
    text = README.read_text(encoding="utf-8")
    section = text[text.index("## What it gains") : text.index("## The passes around")]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 6
    made = report.side_by_side(records).splitlines()
    assert all(line in made for line in lines)


def test_a_document_without_its_record() -> None:
    with pytest.raises(SystemExit, match="no record given of 'cpu somewhere'"):
        report.filled("<!-- table: cpu somewhere --><!-- end -->", [])


def test_list_and_only(command: Command) -> None:
    assert command("cpu", "--list", "--only", "mlp", "gpt2/AdamW").split() == [
        "gpt2/AdamW/fp32",
        "mlp/Adam/fp32",
        "mlp/RMSprop/fp32",
        "mlp/SGD-plain/fp32",
    ]
    with pytest.raises(SystemExit, match="no row matches 'nothing'"):
        command("cpu", "--only", "nothing")


def test_quick_curves_have_every_sweep(quick_benchmarks: tuple[Path, str]) -> None:
    points = record.load(quick_benchmarks[0] / "curves.json")["rows"]
    assert {point["sweep"] for point in points} == plots.SWEEPS.keys()
    isas = {f"fastopt.{isa}" for isa in _core.supported_isas()}
    for point in points:
        ours = isas if point["sweep"] == "isa" else {"fastopt"}
        assert point["samples"].keys() == ours | {"torch.fused", "floor"}


class _Noting(torch.optim.Adam):
    """Adam that notes the instruction set of each of its steps."""

    ran: list[str]

    def step(self, closure: Any = None) -> Any:
        self.ran.append(_core.isa())
        return super().step(closure)


def _noting(ran: list[str]) -> contestants.Maker:
    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer = _Noting(params, **options)
        optimizer.ran = ran
        return optimizer

    return make


def test_a_step_forced_to_an_instruction_set_leaves_the_best_to_the_others() -> None:
    best = _core.isa()
    for isa in _core.supported_isas():
        ran: list[str] = []
        weight = torch.ones(3, requires_grad=True)
        weight.grad = torch.ones(3)
        contestants.forced(_noting(ran), isa)("Adam", [weight], {"lr": 1e-3}).step()
        assert (ran, _core.isa()) == ([isa], best)


def test_rows_forced_to_instruction_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row once for each, run on it and named so; in the title, and torch's in the note."""
    best, asked = _core.isa(), _core.supported_isas()[::-1]
    ran: list[str] = []
    monkeypatch.setitem(contestants.MAKERS, "fastopt", _noting(ran))
    parser = argparse.ArgumentParser()
    cpu.QUESTION.add_arguments(parser)
    options = ["--quick", "--only", "mlp/Adam", "--out", str(tmp_path / "made.json")]
    assert cpu.QUESTION.main(parser.parse_args([*options, "--isa", ",".join(asked)])) == 0
    assert list(dict.fromkeys(ran)) == asked
    assert _core.isa() == best
    saved = record.load(tmp_path / "made.json")
    assert [(row["id"], row["isa"]) for row in saved["rows"]] == [
        (f"mlp/Adam/fp32, forced {isa}", isa) for isa in asked
    ]
    printed = capsys.readouterr().out
    assert f"forced {' and '.join(asked)} on {saved['machine']['cpu']}" in printed
    assert all(f"Adam, fp32, forced {isa}" in printed for isa in asked)
    assert f"torch keeps its own ({saved['versions']['torch_isa']})" in printed


def test_an_unknown_instruction_set_is_an_error_that_names_those_there_are(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        command("cpu", "--isa", "avx2,mmx")
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "'mmx' is none of" in error or "'avx2' is none of" in error
    assert all(isa in error for isa in _core.supported_isas())
