"""The functional forms: torch's arguments in torch's order, the classes' bits, errors before any
write, first momentum buffers, found_inf and grad_scale.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import (
    ALL_DTYPES,
    NUMBERS,
    Case,
    Optimizer,
    assert_same_bits,
    discover,
    parameter,
    values,
)
from torch import Tensor

import fastopt
from fastopt import _core, functional
from fastopt.precision import CODES

UNDER_TEST = [optimizer for optimizer in discover() if optimizer.ours_functional]
SHAPES = [(5, 3), (17,), (), (0, 2), (2, 64)]


def split(hyper: dict[str, Any], form: Callable[..., Any], cls: Any) -> dict[str, Any]:
    """The keyword arguments of the functional form for a class's hyperparameters."""
    group = {**cls([torch.ones(1)], **hyper).param_groups[0]}
    names = inspect.signature(form).parameters
    for key in [key for key, value in group.items() if isinstance(value, tuple)]:
        beside = (key, f"{key[:-1]}_scales")  # lists of states
        of = [name for name in names if name.startswith(key[:-1]) and name not in beside]
        group |= zip(of, group.pop(key), strict=True)
    flags = ("params", "foreach", "fused")
    if "decoupled_weight_decay" not in names:
        group.pop("decoupled_weight_decay", None)
    return {k: v for k, v in group.items() if k in names and k not in flags}


def counts_steps(form: Callable[..., Any]) -> bool:
    """Whether it takes step counts by place, as torch's form does."""
    steps = inspect.signature(form).parameters.get("state_steps")
    return steps is not None and steps.kind is not steps.KEYWORD_ONLY


def begun(name: str, p: Tensor, start: Any) -> Tensor | None:
    if start is None:
        return None
    if name in NUMBERS:
        return torch.tensor(start)
    return torch.full_like(p, complex(start, start) if p.is_complex() else start)


class Lists:
    """What a functional form is called with, made from the states of a class's optimizer."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        optimizer = case.optimizer
        self.case = case
        self.params = [values(s, dtype, seed=i) for i, s in enumerate(SHAPES)]
        starts = optimizer.starts(**case.hyper)
        self.states: dict[str, list[Any]] = {
            name: [begun(name, p, starts.get(name, 0.0)) for p in self.params]
            for name in optimizer.functional_states
        }
        self.steps = [torch.tensor(0.0) for _ in self.params]

    def call(self, form: Callable[..., Any], grads: list[Tensor], **more: Any) -> None:
        optimizer = self.case.optimizer
        lists = [self.states[name] for name in optimizer.functional_states]
        if counts_steps(form):
            lists.append(self.steps)
        form(self.params, grads, *lists, **split(self.case.hyper, form, optimizer.ours), **more)


def gradients(dtype: torch.dtype, k: int) -> list[Tensor]:
    return [values(s, dtype, seed=100 * k + i, wide=True) for i, s in enumerate(SHAPES)]


def test_signature(optimizer: Optimizer) -> None:
    ours = inspect.signature(optimizer.ours_functional).parameters
    theirs = inspect.signature(optimizer.theirs_functional).parameters
    added = [argument for name, argument in ours.items() if name not in theirs]
    assert list(ours)[: len(theirs)] == list(theirs)
    assert all(a.kind is a.KEYWORD_ONLY and a.default is not a.empty for a in added)
    for name, argument in theirs.items():
        assert ours[name].default == argument.default, name
        assert ours[name].kind == argument.kind, name


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_same_bits_as_the_class(case: Case, dtype: torch.dtype) -> None:
    lists = Lists(case, dtype)
    params = [torch.nn.Parameter(p.clone()) for p in lists.params]
    ours = case.optimizer.ours(params, **case.hyper)
    for k in range(3):
        grads = gradients(dtype, k)
        lists.call(case.optimizer.ours_functional, grads)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        ours.step()
    for i, p in enumerate(params):
        assert_same_bits(lists.params[i], p)
        for name, t in ours.state[p].items():
            got = lists.steps[i] if name == "step" else lists.states[name][i]
            assert_same_bits(got, t, name)


def test_close_to_torchs(case: Case) -> None:
    """Torch's functional form with the very same lists and arguments."""
    a, b = (Lists(case, torch.float32) for _ in range(2))
    for k in range(3):
        a.call(case.optimizer.ours_functional, gradients(torch.float32, k))
        b.call(case.optimizer.theirs_functional, gradients(torch.float32, k), foreach=False)
    torch.testing.assert_close(a.params, b.params, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a.steps, b.steps)
    used = {name for name, s in b.states.items() if s[0] is not None}
    for name in used:
        torch.testing.assert_close(a.states[name], b.states[name], rtol=1e-4, atol=1e-5)


def test_tensor_hyperparameters(optimizer: Optimizer) -> None:
    a, b = (Lists(Case(optimizer, "default"), torch.float32) for _ in range(2))
    grads = gradients(torch.float32, 1)
    form = optimizer.ours_functional
    options = split({}, form, optimizer.ours)
    a.call(form, grads)
    lists = [b.states[name] for name in optimizer.functional_states]
    if counts_steps(form):
        lists.append(b.steps)
    tensors = {
        k: torch.tensor(v, dtype=torch.float64) if k in ("lr", "beta1", "beta2") else v
        for k, v in options.items()
    }
    form(b.params, grads, *lists, **tensors)
    for p, q in zip(a.params, b.params, strict=True):
        assert_same_bits(p, q)


def test_scale_and_found_inf(optimizer: Optimizer) -> None:
    form = optimizer.ours_functional
    if "grad_scale" not in inspect.signature(form).parameters:
        pytest.skip("torch's form takes no grad_scale")
    scaled, plain = (Lists(Case(optimizer, "default"), torch.float32) for _ in range(2))
    start = [p.clone() for p in scaled.params]
    grads = [g * 8 for g in gradients(torch.float32, 1)]
    scale = torch.tensor(8.0)
    scaled.call(form, grads, grad_scale=scale, found_inf=torch.tensor(1.0))
    for p, q in zip(scaled.params, start, strict=True):
        assert_same_bits(p, q)
    assert all(step == 0 for step in scaled.steps)
    scaled.call(form, grads, grad_scale=scale, found_inf=torch.tensor(0.0))
    plain.call(form, gradients(torch.float32, 1))
    for p, q, g, h in zip(
        scaled.params, plain.params, grads, gradients(torch.float32, 1), strict=True
    ):
        assert_same_bits(p, q)
        assert_same_bits(g, h, "gradient")


def test_arguments_that_torchs_form_does_not_take(optimizer: Optimizer) -> None:
    """A misspelt or doubled argument is an error, never a default; nothing is written."""
    lists = Lists(Case(optimizer, "default"), torch.float32)
    before = [p.clone() for p in lists.params]
    form, grads = optimizer.ours_functional, gradients(torch.float32, 1)
    options = split({}, form, optimizer.ours)
    states = [lists.states[name] for name in optimizer.functional_states]
    if counts_steps(form):
        states.append(lists.steps)
    arguments = inspect.signature(form).parameters
    name = next(name for name in options if arguments[name].default is inspect.Parameter.empty)
    misspelt = {**options, "lrr": options[name]}
    del misspelt[name]
    for wrong, message in [
        (misspelt, f"'{name}'"),
        ({**options, "lrr": 0.1}, "'lrr'"),
        ({**options, "params": lists.params}, "multiple values"),
    ]:
        with pytest.raises(TypeError, match=message):
            form(lists.params, grads, *states, **wrong)
    with pytest.raises(TypeError, match="too many positional"):
        form(lists.params, grads, *states, *[None] * 30)
    for p, q in zip(lists.params, before, strict=True):
        assert_same_bits(p, q)


def test_first_buffers_of_sgd() -> None:
    """A None is replaced by the first buffer, a tensor is used; a skipped step replaces nothing."""
    options = {"weight_decay": 0.0, "momentum": 0.9, "lr": 0.1, "dampening": 0.0}
    options |= {"nesterov": False, "maximize": False}
    params = [torch.ones(3), torch.ones(3)]
    grads = [torch.full((3,), 2.0), torch.full((3,), 2.0)]
    buffers: list[Tensor | None] = [None, torch.ones(3)]
    kept = buffers[1]
    functional.sgd(params, grads, buffers, found_inf=torch.tensor(1.0), **options)
    assert buffers[0] is None
    functional.sgd(params, grads, buffers, **options)
    assert buffers[1] is kept
    torch.testing.assert_close(buffers, [torch.full((3,), 2.0), torch.full((3,), 2.9)])
    assert all(buffer is not grad for buffer, grad in zip(buffers, grads, strict=True))


def test_versions_grow(optimizer: Optimizer) -> None:
    lists = Lists(Case(optimizer, "default"), torch.float32)
    versions = [p._version for p in lists.params]
    lists.call(optimizer.ours_functional, gradients(torch.float32, 1))
    assert all(p._version > v for p, v in zip(lists.params, versions, strict=True))


def test_parameters_that_require_grad(optimizer: Optimizer) -> None:
    lists = Lists(Case(optimizer, "default"), torch.float32)
    before = lists.params[0].clone()
    lists.params = [torch.nn.Parameter(p) for p in lists.params]
    lists.call(optimizer.ours_functional, gradients(torch.float32, 1))
    assert not torch.equal(lists.params[0], before)


def test_empty_lists(optimizer: Optimizer) -> None:
    lists = Lists(Case(optimizer, "default"), torch.float32)
    lists.params, lists.steps = [], []
    lists.states = {name: [] for name in lists.states}
    lists.call(optimizer.ours_functional, [])


def test_errors_name_the_entry_and_write_nothing(optimizer: Optimizer) -> None:
    form = optimizer.ours_functional
    lists = Lists(Case(optimizer, "default"), torch.float32)
    before = [p.clone() for p in lists.params]
    grads = gradients(torch.float32, 1)
    wrong = [*grads[:3], torch.ones(2, 2), grads[4]]
    with pytest.raises(RuntimeError, match=r"params\[3\]: its gradient has shape \(2, 2\)"):
        lists.call(form, wrong)
    with pytest.raises(ValueError, match="grads has 4 tensors, params 5"):
        lists.call(form, grads[:4])
    lists.params[4] = parameter((2, 64), torch.float32, 0).to_sparse()
    with pytest.raises(RuntimeError, match=r"params\[4\]: it "):
        lists.call(form, grads)
    for p, q in zip(lists.params[:4], before, strict=False):
        assert_same_bits(p, q)
    assert all(step == 0 for step in lists.steps)


@pytest.mark.parametrize("option", ["capturable", "differentiable", "has_sparse_grad"])
def test_what_torchs_forms_alone_do(optimizer: Optimizer, option: str) -> None:
    form = optimizer.ours_functional
    if option not in inspect.signature(form).parameters:
        pytest.skip(f"torch's form has no {option}")
    lists = Lists(Case(optimizer, "default"), torch.float32)
    options = {k: v for k, v in split({}, form, optimizer.ours).items() if k != option}
    states = [lists.states[name] for name in optimizer.functional_states]
    if counts_steps(form):
        states.append(lists.steps)
    with pytest.raises(RuntimeError, match=f"has no {option}=True"):
        form(lists.params, gradients(torch.float32, 1), *states, **options, **{option: True})


def test_the_core_counts_its_lists() -> None:
    """The compiled form reads no list beyond its end, whoever calls it."""
    one = [torch.ones(3)]
    group = fastopt.SGD([torch.ones(3)], lr=0.1, momentum=0.9).param_groups[0]
    for grads, states, carried in [
        ([], [one], []),
        (one, [], []),
        (one, [[]], []),
        (one, [one], [one]),
    ]:
        with pytest.raises(ValueError, match="for 1 parameters, as many gradients"):
            _core.update("sgd", one, grads, states, carried, {}, b"", group, False, None, 1)


FORMATS = [
    {"state_bits": 8, "rounding_seed": 3},
    {"state_bits": 16, "stochastic_rounding": True},
    {"state_bits": 8, "master_weight_bits": 24},
]


@pytest.mark.parametrize("formats", FORMATS, ids=str)
def test_compact_formats(optimizer: Optimizer, formats: dict[str, Any]) -> None:
    """The tensors that a class's optimizer keeps, given as lists."""
    form, hyper = optimizer.ours_functional, optimizer.strongest
    assert form is not None
    params = [torch.nn.Parameter(values(s, torch.bfloat16, seed=1)) for s in [(64, 64), (4100,)]]
    ours = optimizer.ours(params, **hyper, **formats)
    lists: list[Tensor] = []
    kept: list[dict[str, Tensor]] = []
    for k in range(3):
        for i, p in enumerate(params):
            p.grad = values(p.shape, torch.bfloat16, seed=10 * k + i)
        ours.step()
        if not kept:  # from here on by itself
            lists = [p.detach().clone() for p in params]
            kept = [{n: t.clone() for n, t in ours.state[p].items()} for p in params]
            continue
        given = [
            [of.get(name, of.get(name + CODES)) for of in kept]
            for name in optimizer.functional_states
        ]
        if counts_steps(form):
            given.append([of["step"] for of in kept])
        named = {f"{n}s": [of[n] for of in kept] for n in kept[0] if n.endswith("_scale")}
        if "master_low" in kept[0]:
            named["master_lows"] = [of["master_low"] for of in kept]
        if not counts_steps(form):
            named["state_steps"] = [of["step"] for of in kept]
        said = split(hyper, form, optimizer.ours) | named | formats
        form(lists, [p.grad for p in params], *given, **said)
        for p, mine, of in zip(params, lists, kept, strict=True):
            assert_same_bits(p.detach(), mine)
            for name, t in ours.state[p].items():
                assert torch.equal(of[name], t), name


def test_corrections_of_what_has_none() -> None:
    p, low = torch.ones(64), torch.ones(64, dtype=torch.int8)
    with pytest.raises(RuntimeError, match="'master_low' is the correction of a 16-bit parameter"):
        fastopt.functional.sgd(
            [p],
            [torch.ones(64)],
            [None],
            weight_decay=0.0,
            momentum=0.0,
            lr=0.1,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            master_weight_bits=24,
            master_lows=[low],
            state_steps=[torch.zeros(())],
        )
    assert torch.equal(p, torch.ones(64))
