"""What is the Triton backend's own, in its interpreter: blocks, launches that groups share,
GradScaler and step counts on the device, its tables, plans and errors, explain().

Skipped in a plain run; `make test` runs it with the parity suite, under TRITON_INTERPRET=1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from typing import Any

import gpu_parity
import pytest
import torch
from support import ALL_DTYPES, UNITS, assert_same_bits, launches, parameter, params_of, values
from torch import Tensor

import fastopt
from fastopt import _core

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

from fastopt.backends.triton import rules, tables, tiles

pytestmark = pytest.mark.parity

BLOCK = tiles.lanes([4], 32)["BLOCK"]

Make = Callable[[], torch.optim.Optimizer]


def both(
    monkeypatch: pytest.MonkeyPatch, make: Make, step: Callable[[torch.optim.Optimizer], None]
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """The same optimizer stepped by Triton and by the CPU engine; everything must be equal."""
    made = []
    for backend, path in (("triton", "triton"), ("auto", "cpu")):
        monkeypatch.setenv("FASTOPT_BACKEND", backend)
        optimizer = make()
        step(optimizer)
        assert {b.path for b in fastopt.explain(optimizer).buckets} == {path}
        made.append(optimizer)
    ours, engine = made
    for i, (p, q) in enumerate(zip(params_of(ours), params_of(engine), strict=True)):
        assert_same_bits(p, q, f"parameter {i}")
        assert ours.state[p].keys() == engine.state[q].keys()
        for name, state in ours.state[p].items():
            assert_same_bits(state, engine.state[q][name], f"{name} of parameter {i}")
    return ours, engine


def stepped(count: int, absent: Sequence[tuple[int, int]] = ()) -> Any:
    """Step so often; (step, parameter) in `absent` has no gradient there."""

    def step(optimizer: torch.optim.Optimizer) -> None:
        for k in range(count):
            for i, p in enumerate(params_of(optimizer)):
                p.grad = None if (k, i) in absent else values(p.shape, p.grad_dtype, 100 * k + i)
            optimizer.step()

    return step


VARIANTS: list[tuple[Any, dict[str, Any]]] = [
    (fastopt.SGD, {}),
    (fastopt.SGD, {"momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1, "maximize": True}),
    (fastopt.AdamW, {}),
    (fastopt.Adam, {"amsgrad": True, "weight_decay": 0.1}),
    *(
        (fastopt.RMSprop, {"momentum": momentum, "centered": centered, "weight_decay": 0.1})
        for momentum in (0, 0.9)
        for centered in (False, True)
    ),
]


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize(("cls", "hyper"), VARIANTS, ids=str)
def test_every_variant_and_dtype(
    cls: Any, hyper: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All in one launch: empty, 0-d, one element, several blocks."""
    shapes = [(0,), (), (1,), (2 * BLOCK + 3,)]

    def make() -> torch.optim.Optimizer:
        made: torch.optim.Optimizer = cls(
            [parameter(s, dtype, seed=i) for i, s in enumerate(shapes)], **hyper
        )
        return made

    both(monkeypatch, make, stepped(2))


@pytest.mark.parametrize("grad", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 2])
def test_sizes_around_a_block(
    shift: int, grad: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every remainder of a vector, at every alignment; the elements around stay untouched."""
    sizes = [*range(1, 10), 127, 128, 129, *range(BLOCK - 2, BLOCK + 6)]
    memory: list[Tensor] = []

    def make() -> torch.optim.Optimizer:
        memory[:] = [torch.full((n + 8,), 7.0) for n in sizes]
        views = [m[shift : shift + n] for m, n in zip(memory, sizes, strict=True)]
        for i, view in enumerate(views):
            view.copy_(values(view.shape, view.dtype, i))
            view.requires_grad_().grad_dtype = grad
        return fastopt.AdamW(views)

    def step(optimizer: torch.optim.Optimizer) -> None:
        stepped(1)(optimizer)
        for m, n in zip(memory, sizes, strict=True):
            assert (m[:shift] == 7).all()
            assert (m[shift + n :] == 7).all()

    both(monkeypatch, make, step)


def test_groups_and_steps_share_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Param groups of all kinds, parameters left out of some steps: one launch a dtype."""

    def make() -> torch.optim.Optimizer:
        p = [parameter((40 + i,), torch.float32, seed=i) for i in range(6)]
        p.append(parameter((33,), torch.bfloat16, seed=9))
        return fastopt.Adam(
            [
                {"params": p[:2]},
                {"params": p[2:4], "lr": 0.1, "maximize": True},
                {"params": p[4:], "betas": (0.5, 0.6), "weight_decay": 0.3, "eps": 1e-3},
            ]
        )

    launched = launches(monkeypatch)
    absent = [(1, 0), (1, 3), (2, 6), (3, 0)]
    ours, _ = both(monkeypatch, make, stepped(5, absent))
    assert launched == ["multi_tensor"] * 2 * 5
    assert [ours.state[p]["step"].item() for p in params_of(ours)] == [3, 5, 5, 4, 5, 5, 4]


def test_parameters_that_share_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, as torch's loop does."""

    def make() -> torch.optim.Optimizer:
        base = values((64,), torch.float32, seed=0)
        return fastopt.SGD([base[a:b].requires_grad_() for a, b in ((0, 40), (20, 64), (30, 50))])

    launched = launches(monkeypatch)
    both(monkeypatch, make, stepped(2))
    assert launched.count("multi_tensor") == 3 * 2


def test_every_rule_has_its_function() -> None:
    assert set(rules.RULES) == set(_core.rules())


def test_table_sends_only_what_changed() -> None:
    table = tables.Table(
        torch.device("cpu"), {"a": (torch.int64, (3,)), "b": (torch.float32, (2, 2))}
    )
    table.host["a"][:] = 5
    table.upload()
    assert table.device["a"].tolist() == [5, 5, 5]
    table.device["a"].fill_(-1)  # a mark: whatever is sent again overwrites it
    table.host["b"][1, 1] = 2
    table.upload()
    assert table.device["a"].tolist() == [-1, -1, -1]
    assert table.device["b"].tolist() == [[0, 0], [0, 2]]
    assert all(view.data_ptr() % 16 == 0 for view in table.device.values())


def test_an_unchanged_second_step_builds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    made = fastopt.RMSprop([parameter((5,), torch.float32, seed=i) for i in range(3)])
    stepped(1)(made)
    plan = made._record.plan
    stepped(2)(made)
    assert made._record.plan is plan
    params_of(made)[0].data = torch.ones(5)
    stepped(1)(made)
    assert made._record.plan is not plan


def test_a_state_on_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    params = [("a", parameter((4,), torch.float32, 0)), ("b", parameter((4,), torch.float32, 1))]
    made = fastopt.Adam(params)
    stepped(1)(made)
    made.state[params[1][1]]["exp_avg"] = torch.zeros(4, device="meta")
    before = params[0][1].detach().clone()
    message = r"'b' .*its state 'exp_avg' cannot be read \(Cannot pack tensors on meta"
    with pytest.raises(RuntimeError, match=message):
        made.step()
    assert torch.equal(params[0][1], before)


def test_explain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    params = [parameter((4, 3), torch.float32, seed=i) for i in range(2)]
    params[1].data = params[1].data[:, ::2]
    made = fastopt.SGD(params)
    first, second = fastopt.explain(made).buckets
    assert (first.path, first.reason) == ("triton", "one launch per combination of dtypes")
    assert "copied to and from a dense layout" in second.reason


@pytest.mark.parametrize("compact", [False, True])
def test_the_tunings_tiles(compact: bool) -> None:
    """Another tile within, the usual one after; the same bits of a step by either."""
    from benchmarks.tuning import Row, tile

    row = Row("", "", "fp32", 4, compact)
    sizes, found = ([4, 4, 1, 1] if compact else [4, 4, 4, 4]), []
    for warps, thread_bytes in ((1, 16), (8, 64)):
        usual = tiles.lanes(sizes, 32, compact)
        p = torch.nn.Parameter(torch.linspace(-1, 1, 5003))
        p.grad = p.detach().sin()
        made = fastopt.Adam([p], state_bits=8 if compact else None)
        with tile(row, warps, thread_bytes):
            assert tiles.lanes(sizes, 32, compact)["BLOCK"] == warps * 32 * thread_bytes // 4
            made.step()
        assert tiles.lanes(sizes, 32, compact) == usual
        found.append(p.detach())
    assert torch.equal(*found)


def test_the_gpu_suites_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of tests/gpu_parity.py, all but graphs and streams, here on CPU tensors."""
    monkeypatch.setattr(gpu_parity, "SIZES", [0, 1, 5, BLOCK + 1])
    rules = {getattr(fastopt, cls)._rule for cls, _ in gpu_parity.VARIANTS}
    assert rules == set(_core.rules())
    rows = list(gpu_parity.parity(torch.device("cpu")))
    assert rows
    assert [row for row in rows if "error" in row or (row["differing"] and not UNITS)] == []


def test_the_gpu_suites_checks_can_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One number changed behind the optimizer's back; then a check that raises."""
    step_both = gpu_parity.step_both

    def spoiled(twins: gpu_parity.Twins, *args: Any, **more: Any) -> None:
        step_both(twins, *args, **more)
        twins.ours[0].data[0] += 1

    monkeypatch.setattr(gpu_parity, "step_both", spoiled)
    monkeypatch.setattr(
        gpu_parity, "checks", lambda device: [("spoiled", gpu_parity.groups), ("raises", None)]
    )
    monkeypatch.setattr("sys.argv", ["gpu_parity.py", "cpu"])
    assert gpu_parity.main() == 1
    spoilt, raising = map(json.loads, capsys.readouterr().out.splitlines())
    assert spoilt["differing"] > 0
    assert "TypeError" in raising["error"]
