"""What a step keeps alive and what it allocates: references, cycles, resident memory, tensors."""

from __future__ import annotations

import gc
import os
import tracemalloc
import weakref
from typing import Any

import pytest
import torch
from support import Optimizer, grads_for, parameter, params_of, run, values


@pytest.fixture(autouse=True)
def collected() -> None:
    gc.collect()


def test_gradients_are_let_go(optimizer: Optimizer) -> None:
    """A gradient dies with zero_grad(), without any garbage collection."""
    p = parameter((9,), torch.float32, seed=0)
    ours = optimizer.ours([p], **optimizer.strongest)
    gc.disable()
    try:
        for k in range(3):
            p.grad = values(p.shape, p.dtype, seed=k)
            grad = weakref.ref(p.grad)
            ours.step()
            ours.zero_grad()
            assert grad() is None
    finally:
        gc.enable()


def test_optimizer_and_parameters_die(optimizer: Optimizer) -> None:
    params = [parameter((9,), torch.float32, seed=i) for i in range(3)]
    ours = optimizer.ours(params, **optimizer.strongest)
    run(ours, 3)
    states = [weakref.ref(t) for state in ours.state.values() for t in state.values()]
    alive = [weakref.ref(p) for p in params] + [weakref.ref(ours), *states]
    del params, ours
    gc.collect()
    assert [r() for r in alive] == [None] * len(alive)


def test_a_parameter_taken_out_dies(optimizer: Optimizer) -> None:
    """A parameter that was removed, and its states, live no longer than to the next step."""
    params = [parameter((9,), torch.float32, seed=i) for i in range(3)]
    ours = optimizer.ours(params, **optimizer.strongest)
    run(ours, 2)
    gone = params.pop()
    states = [weakref.ref(t) for t in ours.state.pop(gone, {}).values()]
    ours.param_groups[0]["params"] = [p for p in params_of(ours) if p is not gone]
    parameter_ = weakref.ref(gone)
    del gone
    run(ours, 1)
    gc.collect()
    assert parameter_() is None
    assert [r() for r in states] == [None] * len(states)


def test_replaced_states_die(optimizer: Optimizer) -> None:
    p = parameter((9,), torch.float32, seed=0)
    ours = optimizer.ours([p], **optimizer.strongest)
    run(ours, 2)
    old = [weakref.ref(t) for t in ours.state[p].values()]
    assert len(old) == len(ours.state[p])
    ours.load_state_dict(ours.state_dict())
    ours.state[p] = {name: t.clone() for name, t in ours.state[p].items()}
    run(ours, 1)
    gc.collect()
    assert [r() for r in old] == [None] * len(old)


def by_attribute(p: torch.Tensor, made: torch.optim.Optimizer) -> None:
    p.optimizer = made  # type: ignore[attr-defined]
    run(made, 2)


def by_tensor_hook(p: torch.Tensor, made: torch.optim.Optimizer) -> None:
    def hook(grad: torch.Tensor) -> None:
        made.zero_grad()

    p.register_hook(hook)
    (p * p).sum().backward()
    made.step()


def by_optimizer_in_backward(p: torch.Tensor, made: torch.optim.Optimizer) -> None:
    """Torch 2.13 hides this hook from Python's collector: no such cycle dies before remove()."""

    def hook(param: torch.Tensor) -> None:
        made.step()
        made.zero_grad()

    handle = p.register_post_accumulate_grad_hook(hook)
    before = p.detach().clone()
    for _ in range(3):
        (p * p).sum().backward()
        assert p.grad is None
    assert not torch.equal(p, before)
    handle.remove()


@pytest.mark.parametrize(
    "link", [by_attribute, by_tensor_hook, by_optimizer_in_backward], ids=lambda f: f.__name__
)
def test_cycles_are_collectable(optimizer: Optimizer, link: Any) -> None:
    """Parameter -> (hook ->) optimizer -> parameter: Python's collector takes all of it."""
    p = parameter((9,), torch.float32, seed=0)
    ours = optimizer.ours([p], **optimizer.strongest)
    link(p, ours)
    alive = [weakref.ref(x) for x in (p, ours, *ours.state.get(p, {}).values())]
    del p, ours
    gc.collect()
    assert [r() for r in alive] == [None] * len(alive)


def test_a_hook_that_holds_the_optimizer(optimizer: Optimizer) -> None:
    """The optimizer in a cycle with itself, through its own hook."""
    p = parameter((9,), torch.float32, seed=0)
    ours = optimizer.ours([p], **optimizer.strongest)
    ours.register_step_post_hook(lambda *_, o=ours: o.zero_grad())
    run(ours, 2)
    alive = weakref.ref(p), weakref.ref(ours)
    del p, ours
    gc.collect()
    assert [r() for r in alive] == [None, None]


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def plain_steps(ours: torch.optim.Optimizer, params: list[torch.Tensor]) -> None:
    ours.step()


def new_gradients(ours: torch.optim.Optimizer, params: list[torch.Tensor]) -> None:
    ours.zero_grad()
    for p in params:
        p.grad = torch.ones_like(p)
    ours.step()


def new_plans(ours: torch.optim.Optimizer, params: list[torch.Tensor]) -> None:
    state = ours.state[params[0]]
    ours.state[params[0]] = {name: t.clone() for name, t in state.items()}
    ours.step()


def new_groups(ours: torch.optim.Optimizer, params: list[torch.Tensor]) -> None:
    ours.param_groups[0]["params"].reverse()
    ours.step()


def errors(ours: torch.optim.Optimizer, params: list[torch.Tensor]) -> None:
    grad, params[0].grad = params[0].grad, None
    params[0].data, data = torch.zeros(3), params[0].data
    params[0].grad = torch.zeros(3)
    params[0].data = data
    with pytest.raises(RuntimeError, match="has shape"):
        ours.step()
    params[0].grad = grad


def functional_form(ours: torch.optim.Optimizer, params: list[torch.Tensor]) -> None:
    from fastopt import functional

    functional.sgd(
        params,
        [p.grad for p in params],
        [None] * len(params),
        weight_decay=0.0,
        momentum=0.9,
        lr=0.1,
        dampening=0.0,
        nesterov=False,
        maximize=False,
    )


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's process table")
@pytest.mark.parametrize(
    "work",
    [plain_steps, new_gradients, new_plans, new_groups, errors, functional_form],
    ids=lambda w: w.__name__,
)
def test_resident_memory_stays(optimizer: Optimizer, work: Any) -> None:
    """Thousands of steps leave nothing behind: a leak of 50 bytes a step and tensor would show."""
    params = [parameter((33,), torch.float32, seed=i) for i in range(10)]
    ours = optimizer.ours(params, **optimizer.strongest)
    run(ours, 1)
    rounds = 100 if work is errors else 400
    for _ in range(rounds):
        work(ours, params)
    gc.collect()
    before = resident()
    for _ in range(rounds * 4):
        work(ours, params)
    gc.collect()
    grown = resident() - before
    assert grown < 50 * len(params) * 4 * rounds, f"{grown / (rounds * 4)} bytes a step"


def test_a_step_allocates_no_memory(optimizer: Optimizer) -> None:
    """Python objects of a planned step: a few hundred bytes, whatever the number of tensors."""
    params = [parameter((33,), torch.float32, seed=i) for i in range(300)]
    ours = optimizer.ours(params, **optimizer.strongest)
    run(ours, 3)
    tracemalloc.start()
    try:
        ours.step()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(10):
            ours.step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1000
    # The list of parameters that autograd is told of is all that grows with their number.
    assert peak - before < 16 * len(params) + 4000


def test_states_are_torchs_and_no_more(optimizer: Optimizer) -> None:
    sizes = []
    for cls in (optimizer.ours, optimizer.theirs):
        made = cls([parameter((1000,), torch.float32, seed=0)], **optimizer.strongest)
        grads_for(params_of(made), seed=1)
        made.step()
        sizes.append(
            sum(t.untyped_storage().nbytes() for s in made.state.values() for t in s.values())
        )
    assert sizes[0] == sizes[1]
