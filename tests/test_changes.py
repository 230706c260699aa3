"""What changes between steps: gradients that come and go, parameters and states replaced, options
switched on. The plan of a step is cached: each change must be seen by the next step.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from roundings import RoundedOnce
from support import (
    NUMBERS,
    Optimizer,
    assert_close_state,
    assert_same_bits,
    assert_same_state,
    grads_for,
    parameter,
    params_of,
    run,
    values,
)

pytestmark = pytest.mark.parity


def pair(optimizer: Optimizer) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    made = []
    for cls in (optimizer.ours, optimizer.theirs):
        params = [parameter((3, 5), torch.float32, seed=i) for i in range(3)]
        made.append(cls(params, **optimizer.strongest))
    return made[0], made[1]


def test_gradients_come_and_go(optimizer: Optimizer) -> None:
    """A parameter without gradient keeps its value, state and count until it has one again."""
    a, b = pair(optimizer)
    for k, present in enumerate([(1,), (0, 1), (), (1, 2), (0,), (0, 1, 2)]):
        for made in (a, b):
            params = params_of(made)
            grads_for(params, seed=k)
            for i, p in enumerate(params):
                if i not in present:
                    p.grad = None
            kept = {i: p.detach().clone() for i, p in enumerate(params) if i not in present}
            made.step()
            for i, before in kept.items():
                assert_same_bits(params[i], before)
        assert_close_state(a, b)
    assert [s["step"].item() for s in a.state.values() if "step" in s] in ([], [4, 3, 2], [3, 4, 2])


def test_no_gradients_at_all(optimizer: Optimizer) -> None:
    a, _ = pair(optimizer)
    begun = {p: dict(state) for p, state in a.state.items()}
    a.step()
    assert a.state == begun
    run(a, 1)
    a.zero_grad()
    before = [p.detach().clone() for p in params_of(a)]
    a.step()
    for p, q in zip(params_of(a), before, strict=True):
        assert_same_bits(p, q)


def replace_data(made: torch.optim.Optimizer) -> None:
    for p in params_of(made):
        p.data = values(p.shape, p.dtype, seed=50)


def replace_data_by_another_layout(made: torch.optim.Optimizer) -> None:
    for p in params_of(made):
        p.data = values(p.t().shape, p.dtype, seed=50).t()


def replace_states_in_the_dict(made: torch.optim.Optimizer) -> None:
    for state in made.state.values():
        for name, t in list(state.items()):
            if name not in NUMBERS:
                state[name] = t.clone() * 2


def replace_step_in_the_dict(made: torch.optim.Optimizer) -> None:
    for state in made.state.values():
        if "step" in state:
            state["step"] = torch.tensor(41.0, dtype=state["step"].dtype)


def replace_the_dict(made: torch.optim.Optimizer) -> None:
    for p in params_of(made):
        made.state[p] = {name: t.clone() for name, t in made.state[p].items()}


def replace_the_data_of_states(made: torch.optim.Optimizer) -> None:
    for state in made.state.values():
        for name, t in state.items():
            if name not in NUMBERS:
                t.data = t.clone() * 2


def set_the_data_of_states(made: torch.optim.Optimizer) -> None:
    for state in made.state.values():
        for name, t in state.items():
            if name not in NUMBERS:
                t.set_(t.clone() * 2)


def write_states_in_place(made: torch.optim.Optimizer) -> None:
    for state in made.state.values():
        for t in state.values():
            t.mul_(2)


def clear_the_state(made: torch.optim.Optimizer) -> None:
    made.state.clear()


def drop_the_state_of_one(made: torch.optim.Optimizer) -> None:
    del made.state[params_of(made)[1]]


def add_foreign_state(made: torch.optim.Optimizer) -> None:
    made.state[params_of(made)[0]]["mine"] = "something of the user's"


def replace_a_parameter(made: torch.optim.Optimizer) -> None:
    made.param_groups[0]["params"][1] = parameter((4, 2), torch.float32, seed=60)


def drop_a_parameter(made: torch.optim.Optimizer) -> None:
    del made.param_groups[0]["params"][1]


def reorder_parameters(made: torch.optim.Optimizer) -> None:
    made.param_groups[0]["params"].reverse()


def new_list_of_parameters(made: torch.optim.Optimizer) -> None:
    made.param_groups[0]["params"] = list(made.param_groups[0]["params"])


def new_groups(made: torch.optim.Optimizer) -> None:
    made.param_groups = [dict(group, lr=0.5) for group in made.param_groups]


def split_the_group(made: torch.optim.Optimizer) -> None:
    group = made.param_groups[0]
    made.param_groups.append({**group, "params": group["params"][2:], "lr": 0.7})
    group["params"] = group["params"][:2]


def toggle_maximize(made: torch.optim.Optimizer) -> None:
    made.param_groups[0]["maximize"] = not made.param_groups[0]["maximize"]


def gradient_of_another_layout(made: torch.optim.Optimizer) -> None:
    for p in params_of(made):
        p.grad = values(p.t().shape, p.dtype, seed=70).t()
    made.step()


CHANGES = [
    replace_data,
    replace_data_by_another_layout,
    replace_states_in_the_dict,
    replace_step_in_the_dict,
    replace_the_dict,
    replace_the_data_of_states,
    set_the_data_of_states,
    write_states_in_place,
    clear_the_state,
    drop_the_state_of_one,
    add_foreign_state,
    replace_a_parameter,
    drop_a_parameter,
    reorder_parameters,
    new_list_of_parameters,
    new_groups,
    split_the_group,
    toggle_maximize,
    gradient_of_another_layout,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_changes(optimizer: Optimizer, change: Any) -> None:
    a, b = pair(optimizer)
    for made in (a, b):
        run(made, 2)
        change(made)
        try:
            run(made, 2, seed=5)
        except KeyError:
            assert type(made) is torch.optim.Adagrad
            pytest.skip("this torch's Adagrad makes no states for a parameter that is new")
    for state in [*a.state.values(), *b.state.values()]:
        state.pop("mine", None)
    assert_close_state(a, b)


def test_two_optimizers_of_one_parameter(optimizer: Optimizer) -> None:
    """Each has its state; each sees what the other wrote."""
    results = []
    for cls in (optimizer.ours, optimizer.theirs):
        p = parameter((9,), torch.float32, seed=0)
        first, second = cls([p], **optimizer.strongest), cls([p], lr=0.5)
        for k in range(3):
            run(first, 1, seed=k)
            run(second, 1, seed=10 + k)
        results.append((first, second))
    for ours, theirs in zip(*results, strict=True):
        assert_close_state(ours, theirs)


def test_parameters_grow_new_dtypes(optimizer: Optimizer) -> None:
    """model.double() after some steps, with states converted by load_state_dict."""
    a, b = pair(optimizer)
    for made in (a, b):
        run(made, 2)
        saved = made.state_dict()
        for p in params_of(made):
            p.data, p.grad = p.data.double(), None
        made.load_state_dict(saved)
        run(made, 2, seed=7)
        assert all(p.dtype == torch.float64 for p in params_of(made))
    assert_close_state(a, b)


def test_sgd_momentum_switched_on_and_off() -> None:
    import fastopt

    made = []
    for cls, around in ((fastopt.SGD, nullcontext()), (torch.optim.SGD, RoundedOnce())):
        made.append(cls([parameter((9,), torch.float32, seed=0)], lr=0.1))
        for k, momentum in enumerate([0.0, 0.9, 0.9, 0.0, 0.5]):
            made[-1].param_groups[0]["momentum"] = momentum
            with around:
                run(made[-1], 1, seed=k)
    assert_same_state(*made)


def test_mixed_dtypes_and_groups(optimizer: Optimizer) -> None:
    """Every dtype in one optimizer, two groups: the bits of each parameter by itself."""
    from support import ALL_DTYPES

    def params() -> list[torch.Tensor]:
        return [parameter((i + 3, 7), d, seed=i) for i, d in enumerate(ALL_DTYPES)]

    together, apart = params(), params()
    mixed = optimizer.ours(
        [{"params": together[:3], "lr": 0.1}, {"params": together[3:]}], **optimizer.strongest
    )
    single = [
        optimizer.ours([p], **{**optimizer.strongest, **({"lr": 0.1} if i < 3 else {})})
        for i, p in enumerate(apart)
    ]
    for k in range(3):
        grads_for(together, seed=k)
        grads_for(apart, seed=k)
        mixed.step()
        for made in single:
            made.step()
    for p, q, made in zip(together, apart, single, strict=True):
        assert_same_bits(p, q)
        for name, state in mixed.state[p].items():
            assert_same_bits(state, made.state[q][name], name)
