"""Tensors that do not fit their parameter: one RuntimeError that names the parameter, what was got
and what is allowed, and no tensor, step count or state changed, of it or of its neighbours.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import (
    NUMBERS,
    ON_TRITON,
    Optimizer,
    assert_begun,
    assert_same_state,
    grads_for,
    parameter,
    params_of,
    run,
)
from torch import Tensor

pytestmark = pytest.mark.parity


def misfit(p: Tensor, grad: Tensor) -> None:
    """Give a parameter a gradient that torch would not let it have."""
    data = p.data
    p.grad = None
    p.data = torch.empty_like(grad)
    p.grad = grad
    p.data = data


def set_state(made: torch.optim.Optimizer, make: Callable[[Tensor], Any]) -> None:
    state = made.state[params_of(made)[1]]
    name = next((n for n in state if n not in NUMBERS), None)
    if name is None:
        pytest.skip("no state without momentum")
    state[name] = make(state[name])


def set_number(made: torch.optim.Optimizer, number: Any) -> None:
    state = made.state[params_of(made)[1]]
    names = [name for name in state if name in NUMBERS]
    if not names:
        pytest.skip("SGD counts no steps")
    state[names[-1]] = number


def second(made: torch.optim.Optimizer) -> Tensor:
    return params_of(made)[1]


GRADIENTS: dict[str, tuple[Callable[[torch.optim.Optimizer], Any], str]] = {
    "shape": (
        lambda o: misfit(second(o), torch.ones(7)),
        r"its gradient has shape \(7,\), the parameter \(5, 3\)",
    ),
    "transposed shape": (
        lambda o: misfit(second(o), torch.ones(3, 5)),
        r"its gradient has shape \(3, 5\), the parameter \(5, 3\)",
    ),
    "fewer dimensions": (
        lambda o: misfit(second(o), torch.ones(15)),
        r"its gradient has shape \(15,\), the parameter \(5, 3\)",
    ),
    "a 0-d one": (
        lambda o: misfit(second(o), torch.ones(())),
        r"its gradient has shape \(\), the parameter \(5, 3\)",
    ),
    "an empty one": (
        lambda o: misfit(second(o), torch.ones(0)),
        r"its gradient has shape \(0,\), the parameter \(5, 3\)",
    ),
    "complex": (
        lambda o: misfit(second(o), torch.ones(5, 3, dtype=torch.complex64)),
        "its gradient has dtype complex64, the parameter float32",
    ),
}
STATES: dict[str, tuple[Callable[[torch.optim.Optimizer], Any], str]] = {
    "shape": (
        lambda o: set_state(o, lambda t: torch.ones(2)),
        r"its state '\w+' has shape \(2,\), the parameter \(5, 3\)",
    ),
    "integers": (
        lambda o: set_state(o, torch.Tensor.int),
        r"its state '\w+' has a dtype other than",
    ),
    "expanded": (
        lambda o: set_state(o, lambda t: torch.ones(1).expand(5, 3)),
        r"its state '\w+' is expanded .*clone\(\) it first",
    ),
    "meta": (
        lambda o: set_state(o, lambda t: t.to("meta")),
        r"its state '\w+' ",
    ),
    "sparse": (
        lambda o: set_state(o, lambda t: t.to_sparse()),
        r"its state '\w+' ",
    ),
    "a number": (
        lambda o: set_state(o, lambda t: 3.0),
        r"its state '\w+' is a float, not a plain torch.Tensor",
    ),
    "number of two": (
        lambda o: set_number(o, torch.ones(2)),
        r"its state '\w+' has shape \(2,\).*one float32 or float64 number",
    ),
    "number of bfloat16": (
        lambda o: set_number(o, torch.ones((), dtype=torch.bfloat16)),
        r"its state '\w+' has .*dtype bfloat16; it must be one float32 or float64 number",
    ),
    "number of integers": (
        lambda o: set_number(o, torch.ones((), dtype=torch.int64)),
        r"its state '\w+' has a dtype other than",
    ),
    "not a tensor as number": (lambda o: set_number(o, 3), r"its state '\w+' is a int"),
}


def check(
    optimizer: Optimizer, spoil: Callable[[Any], Any], message: str, named: bool, steps: int
) -> None:
    shapes = [(4,), (5, 3), (2, 3), (3_000,) if ON_TRITON else (70_000,)]  # of several shares
    params: list[Any] = [parameter(s, torch.float32, seed=i) for i, s in enumerate(shapes)]
    given = list(zip("abcd", params, strict=True)) if named else params
    ours = optimizer.ours(given, **optimizer.strongest)
    run(ours, steps)
    grads_for(params, seed=9)
    spoil(ours)
    spoiled = dict(ours.state.get(params[1], {}))  # tensors that deepcopy might refuse
    ours.state.pop(params[1], None)
    before = copy.deepcopy(ours)
    if spoiled or steps:
        ours.state[params[1]] = spoiled
    grads = [p.grad.clone() for p in params]
    where = "parameter 'b' " if named else r"parameter param_groups\[0\]\['params'\]\[1\]"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=where) as caught:
            ours.step()
        assert caught.match(message)
        assert "No parameter was changed" in str(caught.value)
        assert type(ours).__name__ in str(caught.value)
    for p, g in zip(params, grads, strict=True):
        assert torch.equal(p.grad, g)
    for name, value in spoiled.items():
        assert ours.state[params[1]][name] is value
    ours.state.pop(params[1], None)
    if not steps:  # a class may make states with the optimizer, but the refused step made none
        starts = optimizer.starts(**optimizer.strongest)
        for p, state in ours.state.items():
            assert_begun(state, p, starts)
    assert_same_state(ours, before)


@pytest.mark.parametrize("steps", [0, 2], ids=["first step", "third step"])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_gradients(optimizer: Optimizer, kind: str, steps: int) -> None:
    spoil, message = GRADIENTS[kind]
    check(optimizer, spoil, message, named=bool(steps), steps=steps)


@pytest.mark.parametrize("named", [False, True], ids=["unnamed", "named"])
@pytest.mark.parametrize("kind", STATES)
def test_states(optimizer: Optimizer, kind: str, named: bool) -> None:
    spoil, message = STATES[kind]
    check(optimizer, spoil, message, named, steps=2)


EXPANDED: dict[str, Callable[[], Tensor]] = {
    "expanded": lambda: torch.ones(3, 1).expand(3, 4),
    "overlapping": lambda: torch.ones(6).as_strided((3, 4), (1, 1)),
}


@pytest.mark.parametrize("kind", EXPANDED)
def test_expanded_parameters(optimizer: Optimizer, kind: str) -> None:
    """A parameter with several elements in one place would be updated there several times."""
    p = torch.nn.Parameter(EXPANDED[kind]())
    q = parameter((3,), torch.float32, seed=0)
    start = q.detach().clone()
    ours = optimizer.ours([("plain", q), ("wide", p)], **optimizer.strongest)
    p.grad, q.grad = torch.ones(3, 4), torch.ones(3)
    with pytest.raises(RuntimeError, match=r"parameter 'wide' .*it is expanded .*clone\(\)"):
        ours.step()
    assert torch.equal(q, start)
    assert (p == 1).all()
    assert all((state["step"] == 0).all() for state in ours.state.values() if "step" in state)


def test_recovery(optimizer: Optimizer) -> None:
    """After an error is mended, training goes on with the bits of a run that never saw it."""
    made = []
    for faulty in (True, False):
        params = [parameter((5, 3), torch.float32, seed=i) for i in range(3)]
        made.append(optimizer.ours(params, **optimizer.strongest))
        for k in range(3):
            grads_for(params, seed=k)
            if faulty:
                good = params[1].grad
                misfit(params[1], torch.ones(2))
                with pytest.raises(RuntimeError, match="No parameter was changed"):
                    made[-1].step()
                params[1].grad = good
            made[-1].step()
    assert_same_state(*made)


def test_wrong_hyperparameters_between_steps(optimizer: Optimizer) -> None:
    """A group spoiled by hand: an error, and nothing changed."""
    p = parameter((3,), torch.float32, seed=0)
    ours = optimizer.ours([p])
    run(ours, 1)
    before = copy.deepcopy(ours)
    for value, error in (("fast", (TypeError, ValueError)), (None, (TypeError, ValueError))):
        ours.param_groups[0]["lr"] = value
        with pytest.raises(error):
            run(ours, 1)
    del ours.param_groups[0]["lr"]
    with pytest.raises(KeyError, match="lr"):
        run(ours, 1)
    assert_same_state(ours, before)
