"""What holds for every rule over whole tensors: torch's inputs, errors and signature, missing
gradients, checkpoints both ways, copies, closures and hooks.
"""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import test_adafactor
import test_muon
import torch
from support import assert_same_state, params_of, run, values
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db
from whole import make, pair

import fastopt

# How near torch's class they are, with a learning rate at which much happens.
CLOSE: dict[str, Callable[[Any, Any], None]] = {
    "Muon": partial(test_muon.assert_close, lr=0.5),
    "Adafactor": test_adafactor.assert_close,
}
INFOS = {info.optim_cls.__name__: info for info in optim_db if info.optim_cls.__name__ in CLOSE}
names = pytest.mark.parametrize("name", CLOSE)


def test_both_are_in_torchs_table() -> None:
    assert INFOS.keys() == CLOSE.keys()


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in INFOS for kind in INFOS[name].optim_inputs_func(device="cpu")],
    ids=lambda x: getattr(x, "desc", x),
)
def test_torchs_own_inputs(name: str, kind: Any) -> None:
    ours, theirs = pair(name, **kind.kwargs)
    run(ours, 3)
    run(theirs, 3)
    CLOSE[name](ours, theirs)


@pytest.mark.parametrize(
    ("name", "error"),
    [
        pytest.param(name, error, id=f"{name}-{error.optimizer_error_input.desc}")
        for name in INFOS
        for error in INFOS[name].optim_error_inputs_func(device="cpu", dtype=torch.float32)
    ],
)
def test_errors(name: str, error: Any) -> None:
    given, raised = error.optimizer_error_input, []
    params = given.params if given.params is not None else [torch.nn.Parameter(torch.ones(1, 1))]
    at_once = error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    for module in (fastopt, torch.optim):
        failing = partial(getattr(module, name), params, **given.kwargs)
        if not at_once:
            failing = failing().step
            for p in params:
                p.grad = torch.ones_like(p)
        with pytest.raises(error.error_type, match=error.error_regex) as caught:
            failing()
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


@names
def test_signature(name: str) -> None:
    ours, theirs = getattr(fastopt, name), getattr(torch.optim, name)
    own, of_torch = (inspect.signature(cls).parameters for cls in (ours, theirs))
    assert list(own)[: len(of_torch)] == list(of_torch)
    assert all(own[argument].default == of.default for argument, of in of_torch.items())
    assert make(ours).defaults == make(theirs).defaults


@names
def test_no_compact_formats(name: str) -> None:
    with pytest.raises(TypeError, match="state_bits"):
        make(getattr(fastopt, name), state_bits=8)
    optimizer = make(getattr(fastopt, name))
    group = {"params": [torch.ones(2, 2)], "master_weight_bits": 24}
    with pytest.raises(ValueError, match=rf"{name} has no master_weight_bits.*max_grad_norm"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1


@names
def test_missing_gradients(name: str) -> None:
    ours, theirs = pair(name, lr=0.1)
    for k in range(4):
        for optimizer in (ours, theirs):
            for i, p in enumerate(params_of(optimizer)):
                p.grad = values(p.shape, p.dtype, 9 * k + i) if (i + k) % 3 else None
            optimizer.step()
        CLOSE[name](ours, theirs)
    for p in params_of(ours):
        p.grad = None
    before = copy.deepcopy(ours)
    ours.step()
    assert_same_state(ours, before)


@pytest.mark.parametrize("to_torch", [False, True])
@names
def test_state_dict(name: str, to_torch: bool) -> None:
    made, fresh = pair(name, lr=0.1), pair(name, lr=0.1)
    for optimizer in made:
        run(optimizer, 2)
    source, target = made[not to_torch], fresh[to_torch]
    run(target, 1, seed=77)
    with torch.no_grad():
        for p, q in zip(params_of(target), params_of(source), strict=True):
            p.copy_(q)
    target.load_state_dict(copy.deepcopy(source.state_dict()))
    run(source, 2, seed=5)
    run(target, 2, seed=5)
    CLOSE[name](target, source)
    ours, theirs = made
    portable = ours.portable_state_dict()  # type: ignore[attr-defined]
    assert {k: [*v] for k, v in portable["state"].items()} == {
        k: [*v] for k, v in theirs.state_dict()["state"].items()
    }


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@names
def test_copies(name: str, copied: Callable[[Any], Any]) -> None:
    a = make(getattr(fastopt, name), lr=0.1)
    run(a, 2)
    b = copied(a)
    assert type(b) is type(a)
    run(a, 2, seed=9)
    run(b, 2, seed=9)
    assert_same_state(a, b)


@names
def test_closure_and_hooks(name: str) -> None:
    optimizer = make(getattr(fastopt, name))
    called = []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> float:
        assert torch.is_grad_enabled()
        for p in params_of(optimizer):
            p.grad = torch.ones_like(p)
        called.append("closure")
        return 2.5

    assert optimizer.step(closure) == 2.5
    assert called == ["before", "closure", "after"]
    assert all(optimizer.state[p] for p in params_of(optimizer))
