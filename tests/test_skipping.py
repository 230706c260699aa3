"""Steps that are left out, by skip_nonfinite or by GradScaler: what the optimizer then says of its
last step, and what a copy says of steps that the original left out.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import Optimizer, grads_for, parameter, params_of, run

pytestmark = pytest.mark.parity

OWN = {"skip_nonfinite": True, "track_stats": True, "max_grad_norm": 1.0}


def make(optimizer: Optimizer, **own: Any) -> Any:
    params = [parameter((5, 3), torch.float32, seed=0), parameter((9,), torch.float32, seed=1)]
    return optimizer.ours(params, **own)


def by_a_gradient(made: Any) -> None:
    grads_for(params_of(made), seed=9)
    params_of(made)[1].grad[4] = math.nan
    made.step()


def by_a_scaler(made: Any) -> None:
    """As GradScaler hands over what it found, to an optimizer that is made with fused=True."""
    grads_for(params_of(made), seed=9)
    params_of(made)[1].grad[4] = math.inf
    made.grad_scale, made.found_inf = torch.tensor(8.0), torch.tensor(1.0)
    made.step()
    del made.grad_scale, made.found_inf


SKIPS = pytest.mark.parametrize("skip", [by_a_gradient, by_a_scaler], ids=lambda f: f.__name__)


@SKIPS
@pytest.mark.parametrize("backend", ["", "torch"], ids=["own", "torch"])
def test_nothing_is_measured(
    optimizer: Optimizer,
    skip: Callable[[Any], None],
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No statistics of a step that did nothing, rather than weights of norm 0; a norm that is not
    finite; and both are back with the next step.
    """
    if backend:
        monkeypatch.setenv("FASTOPT_BACKEND", backend)
    made = make(optimizer, **OWN)
    for first in (True, False):
        skip(made)
        assert made.stats() == {}
        assert not made.grad_norm.isfinite()
        assert made.skipped_steps == 2 - first
        run(made, 1)
        assert [*made.stats()] == ["0.0", "0.1"]
        assert all(found["weight_norm"] > 0 for found in made.stats().values())
        assert made.grad_norm.isfinite()


def test_a_scaler_skips_without_being_asked_to_measure(optimizer: Optimizer) -> None:
    made = make(optimizer, track_stats=True)
    run(made, 1)
    by_a_scaler(made)
    assert made.stats() == {}
    assert made.grad_norm is None
    assert made.skipped_steps == 0  # of skip_nonfinite alone


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda made: pickle.loads(pickle.dumps(made)),
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_copies_know_of_skipped_steps(optimizer: Optimizer, copied: Callable[[Any], Any]) -> None:
    """And count on by themselves. Of a last step they know nothing: they have made none."""
    made = make(optimizer, **OWN)
    run(made, 1)
    by_a_gradient(made)
    other = copied(made)
    assert other.skipped_steps == 1
    assert other.grad_norm is None
    assert other.stats() == {}
    by_a_gradient(other)
    assert (made.skipped_steps, other.skipped_steps) == (1, 2)
    run(made, 1)
    assert (made.skipped_steps, other.skipped_steps) == (1, 2)
    assert other.grad_norm.isnan()
    again = copied(other)
    assert again.skipped_steps == 2


def test_pickles_of_before(optimizer: Optimizer) -> None:
    """Torch's three keys, which is all that a pickle once had."""
    made = make(optimizer, **OWN)
    by_a_gradient(made)
    old = {key: made.__getstate__()[key] for key in ("defaults", "state", "param_groups")}
    other = type(made).__new__(type(made))
    other.__setstate__(copy.deepcopy(old))
    assert other.skipped_steps == 0
    run(other, 1)
    assert other.grad_norm.isfinite()


def test_a_checkpoint_does_not_count(optimizer: Optimizer) -> None:
    """Skipped steps are the optimizer's own: no checkpoint brings them or takes them away."""
    made, other = make(optimizer, **OWN), make(optimizer, **OWN)
    run(made, 1)
    by_a_gradient(made)
    other.load_state_dict(made.state_dict())
    assert other.skipped_steps == 0
    made.load_state_dict(other.state_dict())
    assert made.skipped_steps == 1
    assert made.grad_norm is None
    assert made.stats() == {}
