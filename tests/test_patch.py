"""patch(): what torch.optim's names make under it, and that nothing else changes."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from support import Optimizer, assert_same_bits, assert_same_state, parameter, params_of, run
from torch.optim import SGD as IMPORTED_BEFORE

import fastopt

TORCHS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)
}
SHARED = sorted(TORCHS.keys() & {cls.__name__ for cls in fastopt.optim.CLASSES})


def params() -> list[torch.nn.Parameter]:
    return [parameter((5, 3), torch.float32, seed=0), parameter((9, 2), torch.float32, seed=1)]


@pytest.mark.parametrize("name", SHARED)
def test_what_is_made(name: str) -> None:
    """The same optimizer as by fastopt's name, which trains alike, within and afterwards."""
    theirs = TORCHS[name]
    more = {"maximize": True} if "maximize" in inspect.signature(theirs).parameters else {}
    signature, initialize = inspect.signature(theirs), theirs.__init__
    with fastopt.patch():
        made = getattr(torch.optim, name)(params(), lr=0.03, **more)
        assert getattr(torch.optim, name) is theirs
        assert inspect.signature(theirs) == signature
        assert theirs.__doc__
    ours = getattr(fastopt, name)(params(), lr=0.03, **more)
    assert type(made) is type(ours)
    assert isinstance(made, theirs)
    for each in (made, ours):
        run(each, 3)
    assert_same_state(made, ours)
    assert theirs.__init__ is initialize
    assert type(theirs(params())) is theirs


def test_the_others_are_made_as_before() -> None:
    """Torch's that fastopt lacks, subclasses of those that it has, its own."""

    class Mine(torch.optim.AdamW):
        def __init__(self, given: Any) -> None:
            super().__init__(given, lr=0.5)

    with fastopt.patch():
        for name in TORCHS.keys() - {*SHARED, "Optimizer"}:
            assert type(getattr(torch.optim, name)(params())) is TORCHS[name]

        class Defined(torch.optim.SGD):
            pass

        for cls in (Mine, Defined, fastopt.AdamW, fastopt.Lion):
            assert type(cls(params())) is cls
        assert Mine(params()).defaults["lr"] == 0.5
        assert isinstance(fastopt.AdamW(params()), torch.optim.Adam)


def test_names_imported_before() -> None:
    with fastopt.patch():
        assert type(IMPORTED_BEFORE(params())) is fastopt.SGD


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies(way: Any) -> None:
    """Of torch's optimizers torch's, of fastopt's fastopt's, whenever."""
    theirs = torch.optim.AdamW(params())
    run(theirs, 2)
    with fastopt.patch():
        ours = torch.optim.AdamW(params())
        run(ours, 2)
        within = [type(way(each)) for each in (theirs, ours)]
        assert isinstance(theirs, torch.optim.AdamW)
    for kinds in (within, [type(way(each)) for each in (theirs, ours)]):
        assert kinds == [torch.optim.AdamW, fastopt.AdamW]


def test_checkpoints() -> None:
    theirs = torch.optim.AdamW(params())
    run(theirs, 2)
    with fastopt.patch():
        ours = torch.optim.AdamW(params())
    ours.load_state_dict(theirs.state_dict())
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        assert_same_bits(ours.state[p]["exp_avg"], theirs.state[q]["exp_avg"])


def test_arguments_and_errors() -> None:
    """Torch's errors in torch's words; ours are taken too."""
    with fastopt.patch():
        with pytest.raises(ValueError, match="Invalid learning rate: -1"):
            torch.optim.AdamW(params(), lr=-1)
        with pytest.raises(TypeError, match="unexpected keyword argument 'lrr'"):
            torch.optim.AdamW(params(), lrr=1)
        assert torch.optim.AdamW(params(), max_grad_norm=1.0).defaults["max_grad_norm"] == 1.0


def test_undoing() -> None:
    """As a plain call; and each call undoes its own only."""
    initialize = torch.optim.SGD.__init__
    outer = fastopt.patch()
    with fastopt.patch():
        pass
    assert type(torch.optim.SGD(params())) is fastopt.SGD
    outer.close()
    outer.close()
    assert torch.optim.SGD.__init__ is initialize
    with pytest.raises(ZeroDivisionError), fastopt.patch():
        1 / 0  # noqa: B018
    assert torch.optim.SGD.__init__ is initialize


def test_every_class(optimizer: Optimizer) -> None:
    """Those that torch has too are among the above."""
    assert (optimizer.ours.__name__ in SHARED) == optimizer.theirs.__module__.startswith("torch.")
