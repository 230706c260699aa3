"""Memory that a step reaches twice: parameters, gradients, states, averages, step counts.

Between parameters the result is torch's loop's: one parameter after the other, in their order. The
oracle is just that, an optimizer for each, stepped in turn over the same memory. Within a parameter
no single pass gives what torch's operations would, and the step is refused.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from support import (
    NUMBERS,
    ON_TRITON,
    Optimizer,
    assert_close_state,
    assert_same_bits,
    assert_same_state,
    parameter,
    params_of,
    values,
)
from torch import Tensor

pytestmark = pytest.mark.parity

SIZE = 3_000 if ON_TRITON else 40_000  # on the engine, shares of several threads
Made = torch.optim.Optimizer


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    torch.set_num_threads(3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "optimizer contains a parameter group with duplicate")
        yield


def apart() -> list[Tensor]:
    params = [parameter((SIZE,), torch.float32, seed=i) for i in range(3)]
    for i, p in enumerate(params):
        p.grad = values(p.shape, p.dtype, seed=10 + i)
    return params


def twice() -> list[Tensor]:
    first, *rest = apart()
    return [first, rest[0], first, rest[1]]


def gradient_of_a_later_one() -> list[Tensor]:
    params = apart()
    params[0].grad = params[2].detach()
    return params


def gradient_of_an_earlier_one() -> list[Tensor]:
    params = apart()
    params[2].grad = params[0].detach()
    return params


def shifted_views() -> list[Tensor]:
    memory = values((2 * SIZE,), torch.float32, seed=0)
    params = [torch.nn.Parameter(memory[at : at + SIZE]) for at in (0, SIZE // 2, SIZE - 1)]
    for i, p in enumerate(params):
        p.grad = values(p.shape, p.dtype, seed=10 + i)
    return params


def shares_a_state(name: str | None = None) -> Callable[[Made], None]:
    """The last parameter takes the first one's state of that name, or all but its numbers."""

    def share(made: Made) -> None:
        first, *_, last = made.param_groups[0]["params"]
        for key, value in made.state[first].items():
            if (key == name) if name else (key not in NUMBERS):
                made.state[last][key] = value

    return share


def shares_numbers(made: Made) -> None:
    first, *_, last = made.param_groups[0]["params"]
    made.state[last] |= {k: t for k, t in made.state[first].items() if k in NUMBERS}


def gradient_of_a_state(made: Made) -> None:
    first, *_, last = made.param_groups[0]["params"]
    for key, value in made.state[first].items():
        if key not in NUMBERS:
            last.grad = value


# What the parameters are, then what becomes of the optimizer once it has states.
PROGRAMS: dict[str, tuple[Callable[[], list[Tensor]], Callable[[Made], None] | None]] = {
    "listed twice": (twice, None),
    "gradient of a later one": (gradient_of_a_later_one, None),
    "gradient of an earlier one": (gradient_of_an_earlier_one, None),
    "views that overlap": (shifted_views, None),
    "a step count of two": (apart, shares_a_state("step")),
    "every number of two": (apart, shares_numbers),
    "an average of two": (apart, shares_a_state("ema")),
    "states of two": (apart, shares_a_state()),
    "gradient that is a state": (apart, gradient_of_a_state),
}


class OneByOne:
    """torch's order by construction: an optimizer for each parameter, over the states of one."""

    def __init__(self, whole: Made, make: Callable[..., Made]) -> None:
        self.whole = whole
        self.parts = []
        for p in whole.param_groups[0]["params"]:
            part = make([p])
            part.state = whole.state
            self.parts.append(part)

    def step(self) -> None:
        for part in self.parts:
            part.step()


@pytest.mark.parametrize("passes", [{}, {"ema_decay": 0.9, "l1": 0.01}], ids=["bare", "passes"])
@pytest.mark.parametrize("program", PROGRAMS)
def test_as_one_after_the_other(optimizer: Optimizer, program: str, passes: dict[str, Any]) -> None:
    hyper = {**optimizer.strongest, **passes, "lr": 1e-3}
    build, share = PROGRAMS[program]
    if "average" in program and not passes:
        pytest.skip("there are no averages without ema_decay")

    def make(params: list[Tensor]) -> Made:
        return optimizer.ours(params, **hyper)

    ours, theirs = make(build()), make(build())
    for made in (ours, theirs):
        made.step()  # creates the states, which a program may then share
        if share is not None:
            share(made)
    oracle = OneByOne(theirs, make)
    for _ in range(3):
        ours.step()
        oracle.step()
        assert_same_state(ours, theirs)


def test_twice_from_the_start(optimizer: Optimizer) -> None:
    """Against torch itself, the first step included."""
    hyper = optimizer.strongest
    ours, theirs = optimizer.ours(twice(), **hyper), optimizer.theirs(twice(), **hyper)
    theirs.param_groups[0]["foreach"] = theirs.param_groups[0]["fused"] = False
    for _ in range(3):
        ours.step()
        theirs.step()
    assert_close_state(ours, theirs)  # steps too


@pytest.mark.engine_only("launches advance numbers on the host before torch's share")
def test_torchs_share_comes_first(optimizer: Optimizer) -> None:
    """Whatever the order of the groups: what it has left is what the engine reads, step counts
    too.
    """
    hyper = {**optimizer.strongest, "lr": 1e-3}

    def make() -> tuple[Any, Tensor, Tensor]:
        p, q = (parameter((SIZE,), torch.float32, seed=k) for k in range(2))
        groups = [{"params": [p]}, {"params": [q], "differentiable": True}]
        made = optimizer.ours(groups, **hyper)
        p.grad, q.grad = (values((SIZE,), torch.float32, seed=k + 5) for k in range(2))
        made.step()
        p.grad = q.detach()
        if "step" in made.state[p]:
            made.state[q]["step"] = made.state[p]["step"]
        return made, p, q

    (ours, *_), (turns, p, q) = make(), make()
    ours.step()
    for first, other in ((q, p), (p, q)):
        other_grad, other.grad = other.grad, None
        turns.step()
        other.grad, first.grad = other_grad, None
    for a, b in zip(params_of(ours), params_of(turns), strict=True):
        assert_same_bits(a.detach(), b.detach())
        assert ours.state[a].keys() == turns.state[b].keys()
        for name, t in ours.state[a].items():
            assert_same_bits(t, turns.state[b][name], name)


def test_memory_that_comes_to_be_shared_and_apart_again(optimizer: Optimizer) -> None:
    """What is known of memory is found again as soon as any of it moves."""
    hyper = {**optimizer.strongest, "lr": 1e-3}
    ours, oracle = optimizer.ours(apart(), **hyper), optimizer.ours(apart(), **hyper)
    parts = OneByOne(oracle, lambda params: optimizer.ours(params, **hyper))
    for shared in (False, True, False, True, True):
        for made in (ours, oracle):
            first, *_, last = made.param_groups[0]["params"]
            last.grad = first.detach() if shared else values((SIZE,), torch.float32, seed=12)
        ours.step()
        parts.step()
        assert_same_state(ours, oracle)


def own_gradient(made: Made, p: Tensor) -> str:
    p.grad = p.detach()
    return "its gradient shares memory with the parameter"


def own_gradient_shifted(made: Made, p: Tensor) -> str:
    memory = torch.cat([p.detach(), torch.ones(1)])
    p.data, p.grad = memory[1:], memory[:-1]
    return "its gradient shares memory with the parameter"


def state_in_the_parameter(made: Made, p: Tensor) -> str:
    names = [name for name in made.state[p] if name not in NUMBERS]
    if not names:
        pytest.skip("no state without momentum")
    made.state[p][names[-1]] = p.detach()
    return f"its state '{names[-1]}' shares memory with the parameter"


def number_in_the_gradient(made: Made, p: Tensor) -> str:
    names = [name for name in made.state[p] if name in NUMBERS]
    if not names:
        pytest.skip("SGD counts no steps")
    assert p.grad is not None
    made.state[p][names[-1]] = p.grad[3]
    return f"its state '{names[-1]}' shares memory with its gradient"


@pytest.mark.parametrize(
    "make", [own_gradient, own_gradient_shifted, state_in_the_parameter, number_in_the_gradient]
)
def test_within_a_parameter_it_is_refused(
    optimizer: Optimizer, make: Callable[[Made, Tensor], str]
) -> None:
    hyper = optimizer.strongest
    ours = optimizer.ours(apart(), **hyper)
    ours.step()
    message = make(ours, ours.param_groups[0]["params"][1])
    before = copy.deepcopy(ours)
    for _ in range(2):  # what is known from the first refusal does not let the second step pass
        with pytest.raises(RuntimeError, match=rf"\['params'\]\[1\]: {message}; clone"):
            ours.step()
        assert_same_state(ours, before)


def test_columns_of_one_matrix_are_apart(optimizer: Optimizer) -> None:
    """Extents that meet without a common element are no reason to refuse."""
    matrix = values((50, 8), torch.float32, seed=0)
    whole, grad = matrix[:, :4].clone(), matrix[:, 4:].clone()
    p = torch.nn.Parameter(matrix[:, :4])
    p.grad = matrix[:, 4:]
    q = torch.nn.Parameter(whole)
    q.grad = grad
    hyper = optimizer.strongest
    ours, other = optimizer.ours([p], **hyper), optimizer.ours([q], **hyper)
    for _ in range(2):
        ours.step()
        other.step()
    assert_same_bits(p, q)
    assert_same_bits(matrix[:, 4:], grad)


@pytest.mark.engine_only("Triton's averages begin on the host, when its launches are done")
def test_an_average_begins_before_gradients_are_cleared(optimizer: Optimizer) -> None:
    """Clearing a gradient that is another parameter's memory is the last thing a step does."""
    params = apart()
    params[2].grad = params[0].detach()
    hyper = optimizer.strongest
    ours = optimizer.ours(params, **hyper, ema_decay=0.9, clear_grads=True)
    ours.step()
    assert not params[0].any()
    assert ours.state[params[0]]["ema"].any()
