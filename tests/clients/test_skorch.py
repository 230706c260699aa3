"""skorch: our classes as `optimizer`, arguments and groups by name, clones, checkpoints."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alike import CLASSES, assert_alike, assert_on_engine, net, torchs

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    skorch = pytest.importorskip("skorch")
    from sklearn.base import clone
    from skorch.callbacks import GradientNormClipping

pytestmark = pytest.mark.filterwarnings("ignore")

X = np.random.default_rng(0).standard_normal((64, 6)).astype(np.float32)
Y = np.arange(64) % 3


def classifier(cls: Any, **options: Any) -> Any:
    return skorch.NeuralNetClassifier(
        net,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=cls,
        lr=0.02,
        max_epochs=3,
        batch_size=16,
        train_split=None,
        iterator_train__shuffle=False,
        verbose=0,
        **options,
    )


def params_of(fitted: Any) -> Any:
    return fitted.module_.parameters()


GROUPS = {"optimizer__param_groups": [("*.bias", {"weight_decay": 0.0, "lr": 0.01})]}


@pytest.mark.parametrize("cls", CLASSES)
def test_training(cls: Any) -> None:
    """Clipped by skorch's callback, or by ours."""
    clipped = {"callbacks": [("clip", GradientNormClipping(0.05))]}
    theirs = classifier(torchs(cls), **clipped, **GROUPS).fit(X, Y)
    for own in (clipped, {"optimizer__max_grad_norm": 0.05}):
        ours = classifier(cls, **own, **GROUPS).fit(X, Y)
        assert_on_engine(ours.optimizer_, cls.__name__)
        assert [group["lr"] for group in ours.optimizer_.param_groups] == [0.01, 0.02]
        assert_alike(params_of(ours), params_of(theirs), net().parameters())


def test_changed_arguments() -> None:
    """set_params() on a fitted net changes the optimizer's groups."""
    ours = classifier(fastopt.AdamW, optimizer__weight_decay=0.1).fit(X, Y)
    ours.set_params(optimizer__weight_decay=0.3, optimizer__max_grad_norm=0.5)
    (group,) = ours.optimizer_.param_groups
    assert (group["weight_decay"], group["max_grad_norm"]) == (0.3, 0.5)
    assert type(clone(ours).fit(X, Y).optimizer_) is fastopt.AdamW


def test_going_on(tmp_path: Path) -> None:
    """From skorch's checkpoints, and from a pickle."""
    own = {"optimizer__max_grad_norm": 0.05, "optimizer__ema_decay": 0.9}
    ours = classifier(fastopt.AdamW, **own).fit(X, Y)
    files = {name: str(tmp_path / name) for name in ("f_params", "f_optimizer")}
    ours.save_params(**files)
    pickled = pickle.loads(pickle.dumps(ours))
    loaded = classifier(fastopt.AdamW, **own).initialize()
    loaded.load_params(**files)
    for each in (ours, pickled, loaded):
        each.partial_fit(X, Y)
    for p, *others in zip(*map(params_of, (ours, pickled, loaded)), strict=True):
        assert all(torch.equal(p, other) for other in others)
