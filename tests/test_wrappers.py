"""An optimizer behind an object that imitates it, as trainers make them: one that passes on the
attributes it lacks, of a class derived from ours but never initialised; and one with a copy of
`__dict__`. What ours remembers beside torch's attributes is the same behind both.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from support import Optimizer, assert_same_bits, assert_same_state, parameter, params_of, run

import fastopt

pytestmark = pytest.mark.parity

OWN = {"max_grad_norm": 0.5, "ema_decay": 0.9, "track_stats": True, "skip_nonfinite": True}


class Delegate:
    """Lightning's and Fabric's way: attributes that the class lacks are the wrapped one's."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Wrapped", (type(self), type(optimizer)), {})

    def step(self, *args: Any) -> Any:
        return self._optimizer.step(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


class Snapshot:
    """The way of older ones: the attributes of the moment, in a `__dict__` of its own."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.__dict__ = {k: v for k, v in optimizer.__dict__.items() if k != "step"}
        self.__class__ = type("Wrapped", (type(self), type(optimizer)), {})
        self._optimizer = optimizer

    def step(self, *args: Any) -> Any:
        return self._optimizer.step(*args)


WRAPPERS = pytest.mark.parametrize("wrap", [Delegate, Snapshot])


def make(optimizer: Optimizer, **own: Any) -> Any:
    params = [parameter((5, 3), torch.float32, seed=0), parameter((9,), torch.float32, seed=1)]
    return optimizer.ours(params, **own)


@WRAPPERS
def test_what_is_read(optimizer: Optimizer, wrap: Any) -> None:
    made = make(optimizer, **OWN)
    wrapper = wrap(made)
    assert isinstance(wrapper, optimizer.ours)
    assert wrapper.grad_norm is None
    for bad in (False, True, False):
        run(made, 1)
        if bad:
            params_of(made)[0].grad[0] = torch.nan
        wrapper.step()
        assert_same_bits(wrapper.grad_norm, made.grad_norm)
        assert wrapper.stats() == made.stats()
        assert bool(wrapper.stats()) != bad
    assert wrapper.skipped_steps == made.skipped_steps == 1
    for a, b in zip(wrapper.ema_parameters(), made.ema_parameters(), strict=True):
        assert a is b
    heading, *lines = str(fastopt.explain(wrapper)).splitlines()
    assert heading == f"{type(made).__name__} (in Wrapped):"
    assert lines == str(fastopt.explain(made)).splitlines()[1:]
    assert fastopt.memory(wrapper) == fastopt.memory(made)


def test_wrappers_in_wrappers() -> None:
    """Looked through from the outside in, also those that are no optimizers."""

    class Engine:
        def __init__(self, held: Any) -> None:
            self.optimizer = held

    made = fastopt.AdamW([parameter((5, 3), torch.float32, seed=0)])
    assert fastopt.explain(Engine(Delegate(made))).optimizer == "AdamW (in Wrapped, in Engine)"
    torchs = torch.optim.AdamW(params_of(made))
    found = fastopt.explain(Engine(torchs))
    assert found.optimizer == "AdamW (in Engine)"
    assert [bucket.reason for bucket in found.buckets] == [
        "torch.optim.adamw.AdamW is not fastopt's"
    ]
    with pytest.raises(TypeError, match=r"got a torch\.optim\.adamw\.AdamW"):
        fastopt.memory(Engine(torchs))


@WRAPPERS
def test_the_swap_is_guarded(optimizer: Optimizer, wrap: Any) -> None:
    """Whoever of the two swaps the averages in, neither steps or swaps before they are out."""
    made = make(optimizer, **OWN)
    wrapper = wrap(made)
    run(made, 2)
    live = [p.detach().clone() for p in params_of(made)]
    for one in (made, wrapper):
        with one.swap_ema():
            for other in (made, wrapper):
                with pytest.raises(RuntimeError, match=r"step\(\) inside swap_ema\(\)"):
                    other.step()
                with pytest.raises(RuntimeError, match="swapped in already"), other.swap_ema():
                    pass
        for p, before in zip(params_of(made), live, strict=True):
            assert_same_bits(p, before)
    run(wrapper, 1)


@WRAPPERS
def test_loading_through_a_wrapper(optimizer: Optimizer, wrap: Any) -> None:
    made, other = make(optimizer, **OWN), make(optimizer, **OWN)
    run(made, 2)
    run(other, 1, seed=5)
    wrapper = wrap(other)
    wrapper._optimizer.load_state_dict(copy.deepcopy(made.state_dict()))
    assert wrapper.grad_norm is None
    with torch.no_grad():
        for p, q in zip(params_of(other), params_of(made), strict=True):
            p.copy_(q)
    run(other, 2, seed=3)
    run(made, 2, seed=3)
    assert_same_state(other, made)
    assert_same_bits(wrapper.grad_norm, made.grad_norm)


def test_a_subclass_that_never_calls_our_constructor(optimizer: Optimizer) -> None:
    class Bare(optimizer.ours):  # type: ignore[name-defined,misc]
        def __init__(self, params: Any, **hyper: Any) -> None:
            torch.optim.Optimizer.__init__(self, params, hyper)

    plain = make(optimizer, **OWN)
    made = Bare(params_of(make(optimizer)), **plain.defaults)
    run(made, 3)
    run(plain, 3)
    assert_same_state(made, plain)
    assert_same_bits(made.grad_norm, plain.grad_norm)


def test_copies_share_nothing(optimizer: Optimizer) -> None:
    """Neither its last step nor its place inside swap_ema()."""
    made = make(optimizer, **OWN)
    run(made, 2)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        with made.swap_ema():
            run(other, 1)
        assert other.grad_norm != made.grad_norm
