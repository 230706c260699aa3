"""`import fastopt as optim`: torch.optim's names, which of them are whose, the functional forms."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import fastopt
from fastopt.optim import CLASSES

# What may be torch's own here, of any torch: what is around an optimizer, then optimizers.
TORCHS_OWN = {"Optimizer", "lr_scheduler", "swa_utils", "swap_in_optimizer_params_and_state"}
OPTIMIZERS = {"Adadelta", "Adafactor", "Adamax", "LBFGS", "Muon", "RAdam", "SparseAdam"}
OPTIMIZERS |= {"ASGD", "Rprop"}

OURS = {cls.__name__: cls for cls in CLASSES}
THEIRS = {cls.__name__: cls.__bases__[1] for cls in CLASSES}


def public(module: Any) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_every_name() -> None:
    """A newer torch's names fail here: they are to be fastopt's, or listed above."""
    assert public(torch.optim) - OURS.keys() <= TORCHS_OWN | OPTIMIZERS
    assert public(torch.optim) <= {*fastopt.__all__} <= public(fastopt)


@pytest.mark.parametrize("name", sorted(public(torch.optim)))
def test_whose(name: str) -> None:
    theirs = getattr(torch.optim, name)
    found = getattr(fastopt, name)
    if name in OURS:
        assert found is OURS[name]
        assert issubclass(found, theirs)
    else:
        assert found is theirs


def test_a_program_of_torchs() -> None:
    import fastopt as optim

    layer = torch.nn.Linear(2, 1)
    optimizer = optim.Adam(layer.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, step_size=1)
    averaged = optim.swa_utils.AveragedModel(layer)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    scheduler.step()
    averaged.update_parameters(layer)
    assert isinstance(optimizer, optim.Optimizer)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_all_by_a_star() -> None:
    names: dict[str, Any] = {}
    exec("from fastopt import *", names)
    assert names["Adam"] is fastopt.Adam
    assert names["LBFGS"] is torch.optim.LBFGS
    assert public(torch.optim) <= names.keys()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS & public(torch.optim) - OURS.keys()))
def test_explain_tells_torchs_own(name: str) -> None:
    made = getattr(fastopt, name)([torch.nn.Parameter(torch.ones(2, 2))])
    explanation = str(fastopt.explain(made))
    assert explanation.startswith(f"{name}:\n  torch: 1 tensor")
    assert f"{name} is not fastopt's" in explanation


@pytest.mark.parametrize("name", OURS)
def test_functional_forms(name: str) -> None:
    """`fastopt.functional.adam` is `torch.optim.adam.adam`'s: of every class that has one."""
    module = THEIRS[name].__module__
    form = module.rsplit(".", 1)[-1].lstrip("_")
    theirs = getattr(importlib.import_module(module), form, None)
    assert (form in fastopt.functional.forms()) == (theirs is not None)
    if theirs is not None:
        assert getattr(fastopt.functional, form).__name__ == form


def test_a_wrong_name() -> None:
    with pytest.raises(AttributeError, match="AdamV"):
        fastopt.AdamV  # noqa: B018
