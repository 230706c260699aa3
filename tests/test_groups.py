"""What a param group holds, changed by hand: how many numbers a key has, what its parameters are
in, which gradients its passes write.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import (
    NUMBERS,
    Optimizer,
    assert_same_bits,
    assert_same_state,
    grads_for,
    params_of,
    run,
    values,
)

from fastopt import _core

pytestmark = pytest.mark.parity


def made(optimizer: Optimizer, **more: Any) -> torch.optim.Optimizer:
    """One of two groups, with its states."""
    groups = [
        {"params": [torch.nn.Parameter(values((7, 3), torch.float32, seed=i)) for i in part]}
        for part in ([0, 1], [2])
    ]
    built = optimizer.ours(groups, **optimizer.strongest, **more)
    run(built, 2)
    return built


@pytest.mark.parametrize("wrong", [(0.5, 0.5, 0.5), [0.5], (), "0.5, 0.5"], ids=repr)
def test_another_count_of_numbers(optimizer: Optimizer, wrong: Any) -> None:
    """None shifts into the next key's place, and none is dropped."""
    ours = made(optimizer)
    for key, numbers in _core.hyper(ours._rule).items():  # type: ignore[attr-defined]
        if len(wrong) == numbers > 1:
            continue
        good = ours.param_groups[1].setdefault(key, False)  # a switch, where it was not set
        count = f"{numbers} numbers" if numbers > 1 else "one number"
        before = copy.deepcopy(ours)
        ours.param_groups[1][key] = wrong
        grads_for(params_of(ours), seed=5)
        if not isinstance(wrong, str):
            with pytest.raises(RuntimeError, match=f"'{key}' is .*; it must be {count}.*No param"):
                ours.step()
        else:
            with pytest.raises((RuntimeError, TypeError)):
                ours.step()
        ours.param_groups[1][key] = good
        assert_same_state(ours, before)
    ours.step()


@pytest.mark.parametrize("within", [tuple, list])
def test_what_the_parameters_are_in(optimizer: Optimizer, within: Callable[..., Any]) -> None:
    ours, other = made(optimizer), made(optimizer)
    for group in ours.param_groups:
        group["params"] = within(group["params"])
    for built in (ours, other):
        run(built, 2, seed=7)
    for p, q in zip(params_of(ours), params_of(other), strict=True):
        assert_same_bits(p, q)


def test_parameters_that_have_no_order(optimizer: Optimizer) -> None:
    ours = made(optimizer)
    group = ours.param_groups[0]
    group["params"] = dict.fromkeys(group["params"])
    with pytest.raises(RuntimeError, match="'params' is a dict; it must be a list or a tuple"):
        ours.step()


def test_only_gradients_that_are_written_are_told_to_autograd(optimizer: Optimizer) -> None:
    ours = made(optimizer)
    ours.param_groups[1]["clear_grads"] = True
    for k in range(2):
        grads_for(params_of(ours), seed=k)
        grads = [p.grad for p in params_of(ours)]
        before = [g._version for g in grads if g is not None]
        ours.step()
        after = [g._version for g in grads if g is not None]
        assert [b > a for a, b in zip(before, after, strict=True)] == [False, False, True]


@pytest.mark.parametrize(
    "make", [lambda t: t.to_sparse(), lambda t: t.to("meta")], ids=["sparse", "meta"]
)
def test_states_that_have_no_memory(optimizer: Optimizer, make: Callable[..., Any]) -> None:
    """The message is fastopt's and torch's, without torch's C++ stack."""
    ours = made(optimizer)
    p = params_of(ours)[1]
    names = [name for name in ours.state[p] if name not in NUMBERS]
    if not names:
        pytest.skip("no state without momentum")
    ours.state[p][names[0]] = make(ours.state[p][names[0]])
    with pytest.raises(RuntimeError, match=f"state '{names[0]}'") as raised:
        ours.step()
    assert len(str(raised.value)) < 500
