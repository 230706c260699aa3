"""What surrounds the passes: bad arguments, averages and swapping, checkpoints, torch's path."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support import (
    Optimizer,
    assert_close_state,
    assert_same_bits,
    assert_same_state,
    grads_for,
    parameter,
    params_of,
    run,
)
from test_passes import ALL, COMBINED, composed, strongest
from test_training import compiles

import fastopt
from fastopt.arguments import setting

pytestmark = pytest.mark.parity


def make(optimizer: Optimizer, cls: Any = None, **hyper: Any) -> Any:
    params = [parameter((5, 3), torch.float32, seed=0), parameter((9,), torch.float32, seed=1)]
    return (cls or optimizer.ours)(params, **hyper)


BAD = [
    ("max_grad_norm", -1.0),
    ("max_grad_norm", math.nan),
    ("max_grad_value", -0.1),
    ("max_grad_value", math.nan),
    ("l1", -1e-3),
    ("l1", math.nan),
    ("l1", math.inf),
    ("ema_decay", -0.1),
    ("ema_decay", 1.5),
    ("ema_decay", math.nan),
    ("skip_nonfinite", 2),
    ("clear_grads", "yes"),
    ("track_stats", None),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values(optimizer: Optimizer, name: str, value: Any) -> None:
    """In the constructor, in a group given to it, in a group added later."""
    p, q = parameter((3,), torch.float32, seed=0), parameter((3,), torch.float32, seed=1)
    message = rf"{name} is {value!r}; allowed: "
    with pytest.raises(ValueError, match=message):
        optimizer.ours([p], **{name: value})
    with pytest.raises(ValueError, match=message):
        optimizer.ours([{"params": [p], name: value}])
    ours = optimizer.ours([p])
    with pytest.raises(ValueError, match=message):
        ours.add_param_group({"params": [q], name: value})
    assert len(ours.param_groups) == 1


def test_groups_have_the_arguments(optimizer: Optimizer) -> None:
    p, q, r = (parameter((3,), torch.float32, seed=i) for i in range(3))
    ours = optimizer.ours([{"params": [p], "l1": 0.5}, {"params": [q]}], l1=0.25, ema_decay=0.9)
    ours.add_param_group({"params": [r]})
    assert [group["l1"] for group in ours.param_groups] == [0.5, 0.25, 0.25]
    assert [group["ema_decay"] for group in ours.param_groups] == [0.9] * 3


def test_without_averages(optimizer: Optimizer) -> None:
    ours = make(optimizer)
    with pytest.raises(RuntimeError, match=r"ema_decay=0\.999"), ours.swap_ema():
        pass
    with pytest.raises(RuntimeError, match=r"ema_decay=0\.999"):
        ours.ema_parameters()
    with pytest.raises(RuntimeError, match="track_stats=True"):
        ours.stats()
    assert ours.grad_norm is None


def test_averages_before_the_first_step(optimizer: Optimizer) -> None:
    ours = make(optimizer, ema_decay=0.9, track_stats=True)
    for p, average in zip(params_of(ours), ours.ema_parameters(), strict=True):
        assert_same_bits(p, average)
    with ours.swap_ema():
        pass
    assert ours.stats() == {}


def test_swap(optimizer: Optimizer) -> None:
    """The averages inside; afterwards, also after an exception, all as it was."""
    ours = make(optimizer, ema_decay=0.9)
    run(ours, 3)
    live = [p.detach().clone() for p in params_of(ours)]
    averages = [average.clone() for average in ours.ema_parameters()]
    pointers = [p.data_ptr() for p in params_of(ours)]
    assert not any(torch.equal(a, b) for a, b in zip(live, averages, strict=True))

    def swapped() -> None:
        with ours.swap_ema():
            for p, average, pointer in zip(params_of(ours), averages, pointers, strict=True):
                assert_same_bits(p, average)
                assert p.data_ptr() == pointer
            with pytest.raises(RuntimeError, match="swapped in already"), ours.swap_ema():
                pass
            with pytest.raises(RuntimeError, match=r"step\(\) inside swap_ema\(\)"):
                ours.step()
            raise KeyError("evaluation failed")

    with pytest.raises(KeyError, match="evaluation failed"):
        swapped()
    for p, weight, a, b in zip(params_of(ours), live, ours.ema_parameters(), averages, strict=True):
        assert_same_bits(p, weight)
        assert_same_bits(a, b)
    run(ours, 1)


def test_swap_of_parameters_that_share_memory(optimizer: Optimizer) -> None:
    memory = torch.randn(8)
    params = [torch.nn.Parameter(memory[:6]), torch.nn.Parameter(memory[3:])]
    ours = optimizer.ours(params, lr=0.1, ema_decay=0.9)
    run(ours, 3)
    before = [memory.clone(), *(average.clone() for average in ours.ema_parameters())]
    with ours.swap_ema():
        assert not torch.equal(memory, before[0])
    for a, b in zip([memory, *ours.ema_parameters()], before, strict=True):
        assert_same_bits(a, b)


def test_a_parameter_without_gradient_stands_for_its_average(optimizer: Optimizer) -> None:
    ours = make(optimizer, ema_decay=0.9)
    first, second = params_of(ours)
    first.grad = torch.ones_like(first)
    ours.step()
    assert "ema" in ours.state[first]
    assert "ema" not in ours.state.get(second, {})
    assert_same_bits(list(ours.ema_parameters())[1], second)


def test_stats_by_name(optimizer: Optimizer) -> None:
    net = torch.nn.Linear(3, 2)
    ours = optimizer.ours(net.named_parameters(), track_stats=True)
    run(ours, 1)
    assert ours.stats().keys() == {"weight", "bias"}
    for found in ours.stats().values():
        assert found.keys() == {"grad_norm", "update_norm", "weight_norm", "update_ratio"}
        assert found["update_ratio"] == found["update_norm"] / found["weight_norm"] > 0


def test_checkpoints_travel(optimizer: Optimizer) -> None:
    """With averages to torch's class; from torch's class, without any; between ours."""
    ours = make(optimizer, **ALL)
    run(ours, 2)
    theirs = make(optimizer, optimizer.theirs)
    theirs.load_state_dict(copy.deepcopy(ours.state_dict()))
    run(theirs, 2)

    plain = make(optimizer, optimizer.theirs)
    run(plain, 2)
    there = make(optimizer, **ALL)
    there.load_state_dict(plain.state_dict())
    assert {k: there.param_groups[0][k] for k in ALL} == ALL
    run(there, 2)
    assert all("ema" in there.state[p] for p in params_of(there))

    back = make(optimizer, ema_decay=0.5)
    with torch.no_grad():
        for p, q in zip(params_of(back), params_of(ours), strict=True):
            p.copy_(q)
    back.load_state_dict(copy.deepcopy(ours.state_dict()))
    assert {k: back.param_groups[0][k] for k in ALL} == ALL
    run(back, 2, seed=7)
    run(ours, 2, seed=7)
    assert_same_state(back, ours)


def test_a_copy_has_the_arguments(optimizer: Optimizer) -> None:
    ours = make(optimizer, **ALL)
    run(ours, 2)
    copied = copy.deepcopy(ours)
    run(copied, 1, seed=5)
    run(ours, 1, seed=5)
    assert_same_state(copied, ours)


def test_switched_on_and_off_in_training(optimizer: Optimizer) -> None:
    ours, plain = make(optimizer), make(optimizer)
    for k, own in enumerate([{}, ALL, {}, {"ema_decay": 0.5}, {}]):
        off = {name: setting(plain.param_groups[0], name) for name in ALL}
        ours.param_groups[0].update(off | own)
        run(ours, 1, seed=k)
        if not own:
            assert ours.grad_norm is None
    assert setting(ours.param_groups[0], "max_grad_norm") is None
    assert all("ema" in ours.state[p] for p in params_of(ours))


def test_switched_on_and_off_on_torchs_path(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    ours = make(optimizer)
    for limit in (None, 0.5, None):
        ours.param_groups[0]["max_grad_norm"] = limit
        run(ours, 1)
        assert ours.grad_norm is None if limit is None else ours.grad_norm > 0


TORCH_ALONE = [name for name in COMBINED if name in ("norm", "value", "l1", "ema", "clear", "all")]


@pytest.mark.parametrize("combination", TORCH_ALONE)
def test_torchs_path(
    optimizer: Optimizer, combination: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's own step the passes are torch's, one after another: the same meaning."""
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    own, hyper = COMBINED[combination], strongest(optimizer)
    ours = make(optimizer, **hyper, **own)
    theirs, step = composed(optimizer, own, params_of(make(optimizer)), hyper)
    for k in range(3):
        grads_for(params_of(ours), seed=k)
        grads_for(params_of(theirs), seed=k)
        ours.step()
        if not own.get("clear_grads"):
            for p, q in zip(params_of(ours), params_of(theirs), strict=True):
                assert_same_bits(p.grad, q.grad)
        else:
            assert all((p.grad == 0).all() for p in params_of(ours))
        step()
    assert_close_state(ours, theirs)
    monkeypatch.delenv("FASTOPT_BACKEND")
    fused = make(optimizer, **hyper, **own)
    run(fused, 3, seed=0)
    if own.keys() & {"max_grad_norm"}:
        torch.testing.assert_close(ours.grad_norm, fused.grad_norm)
    if own.get("track_stats"):
        for a, b in zip(ours.stats().values(), fused.stats().values(), strict=True):
            assert list(a.values()) == pytest.approx(list(b.values()), rel=1e-4)


def test_torchs_path_skips(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    ours = make(optimizer, **ALL)
    grads_for(params_of(ours), seed=0)
    params_of(ours)[1].grad[4] = math.nan
    before = [p.detach().clone() for p in params_of(ours)]
    begun = {p: dict(state) for p, state in ours.state.items()}
    ours.step()
    assert ours.skipped_steps == 1
    for p, q in zip(params_of(ours), before, strict=True):
        assert_same_bits(p, q)
        assert (p.grad == 0).all()
    assert {p: state for p, state in ours.state.items() if state} == begun


def test_an_average_begins_as_the_first_updated_weight_on_mixed_paths() -> None:
    p, q = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    groups = [{"params": [p], "ema_decay": 1.0}, {"params": [q], "differentiable": True}]
    ours = fastopt.SGD(groups, lr=0.5)
    p.grad = torch.ones(3)
    for _ in range(2):
        ours.step()
    assert torch.equal(ours.state[p]["ema"], torch.full((3,), 0.5))


@pytest.mark.engine_only("torch's path")
def test_no_decay_leaves_infinite_complex_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of 1 would not: torch multiplies inf + 1j by 1 + 0j, which is inf + nanj."""
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    p = torch.nn.Parameter(torch.tensor([complex(torch.inf, 1)]))
    p.grad = torch.zeros_like(p)
    fastopt.SGD([p], decoupled_weight_decay=True).step()
    assert torch.equal(torch.view_as_real(p.detach()), torch.tensor([[torch.inf, 1.0]]))


def test_decoupled_decay_on_torchs_path(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimizer.name == "adamw" or not optimizer.has("decoupled_weight_decay"):
        pytest.skip("it has one decay only")
    hyper = {"weight_decay": 0.1, "decoupled_weight_decay": True}
    fused = make(optimizer, **hyper)
    run(fused, 3)
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    ours = make(optimizer, **hyper)
    run(ours, 3)
    assert_close_state(ours, fused)
    assert ours.param_groups[0]["weight_decay"] == 0.1


def test_eps_in_sqrt_is_no_path_of_torchs(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not optimizer.has("eps_in_sqrt"):
        pytest.skip("it has no such eps")
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    ours = make(optimizer, eps_in_sqrt=True)
    grads_for(params_of(ours), seed=0)
    with pytest.raises(RuntimeError, match="eps_in_sqrt=True needs fastopt's own kernels"):
        ours.step()


def test_what_torchs_path_cannot_combine(optimizer: Optimizer) -> None:
    ours = make(optimizer, max_grad_norm=1.0, differentiable=True)
    grads_for(params_of(ours), seed=0)
    with pytest.raises(RuntimeError, match=r"\['max_grad_norm'\] with differentiable=True"):
        ours.step()


def test_sparse_gradients_cannot_be_clipped() -> None:
    table = torch.nn.Embedding(10, 3, sparse=True)
    ours = fastopt.SGD(table.parameters(), lr=0.1, max_grad_norm=1.0)
    table(torch.tensor([1, 2])).sum().backward()
    before = table.weight.detach().clone()
    with pytest.raises(RuntimeError, match=r"a gradient of layout torch\.sparse_coo"):
        ours.step()
    assert_same_bits(table.weight, before)


@compiles
def test_under_torch_compile(optimizer: Optimizer) -> None:
    """What torch's step lacks runs outside the compiled graph."""
    ours, eager = (make(optimizer, l1=0.1, max_grad_norm=0.5) for _ in "ab")
    compiled = torch.compile(ours.step, backend="eager")
    for k in range(2):
        grads_for(params_of(ours), seed=k)
        compiled()
        run(eager, 1, seed=k)
    assert_same_state(ours, eager)
