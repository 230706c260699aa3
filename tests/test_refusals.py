"""A step that is refused or interrupted: the optimizer's state is what it was, to the entry and its
place, and the message says what to mend in a line.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import (
    Optimizer,
    assert_same_bits,
    grads_for,
    parameter,
    params_of,
    run,
)
from test_errors import misfit

import fastopt
from fastopt import plan

pytestmark = pytest.mark.parity


def entries(made: torch.optim.Optimizer) -> list[Any]:
    """Every entry of the state, in order, by identity."""
    return [
        (id(p), id(state), [(name, id(value)) for name, value in state.items()])
        for p, state in made.state.items()
    ]


def nothing(made: torch.optim.Optimizer) -> None:
    """No parameter has a state."""


def empty(made: torch.optim.Optimizer) -> None:
    """What looking a state up leaves behind, for torch's state is a defaultdict."""
    made.state[params_of(made)[1]].clear()


def old_checkpoint(made: torch.optim.Optimizer) -> None:
    """Older torch kept an absent momentum buffer as None; something of the user's beside it."""
    made.state[params_of(made)[0]].update({"momentum_buffer": None, "mine": 1})


def partial(made: torch.optim.Optimizer) -> None:
    """A state of the first parameter is gone, and its order is another one."""
    run(made, 1)
    state = made.state[params_of(made)[0]]
    kept = dict(reversed(state.items()))
    state.clear()
    state.update({"mine": 1} | dict(list(kept.items())[1:]))


def without_average(made: torch.optim.Optimizer) -> None:
    run(made, 1)
    for group in made.param_groups:
        group["ema_decay"] = 0.9


@pytest.mark.parametrize(
    "begin", [nothing, empty, old_checkpoint, partial, without_average], ids=lambda f: f.__name__
)
def test_the_state_is_put_back(optimizer: Optimizer, begin: Any) -> None:
    params = [parameter((5, 3), torch.float32, seed=i) for i in range(3)]
    made = optimizer.ours(params, **optimizer.strongest)
    begin(made)
    before = entries(made)
    grads_for(params, seed=3)
    misfit(params[2], torch.ones(2))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="its gradient has shape"):
            made.step()
        assert entries(made) == before


@pytest.mark.engine_only("on Triton the host does not know that a step is skipped")
def test_the_state_is_put_back_where_a_step_is_skipped(optimizer: Optimizer) -> None:
    params = [parameter((5,), torch.float32, seed=i) for i in range(2)]
    made = optimizer.ours(params, **optimizer.strongest, skip_nonfinite=True)
    old_checkpoint(made)
    before = entries(made)
    grads_for(params, seed=1)
    params[1].grad[0] = torch.inf
    made.step()
    assert made.skipped_steps == 1
    assert entries(made) == before


@pytest.mark.engine_only("a call of the compiled core")
def test_an_interrupt_behind_the_update(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during a long step arrives when the update is done: its states then belong to it."""
    params = [parameter((5,), torch.float32, seed=i) for i in range(2)]
    made, plain = (
        optimizer.ours([torch.nn.Parameter(p.detach().clone()) for p in params], **more)
        for more in [optimizer.strongest] * 2
    )

    def interrupted(self: plan.Plan, *args: Any) -> None:
        assert step(self, *args) is None
        raise KeyboardInterrupt

    step = plan.Plan.step
    grads_for(params_of(made), seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(plan.Plan, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.step()
    grads_for(params_of(plain), seed=1)
    plain.step()
    run(made, 1, seed=2)
    run(plain, 1, seed=2)
    for p, q in zip(params_of(made), params_of(plain), strict=True):
        assert_same_bits(p, q)


@pytest.mark.engine_only("a call of the compiled core")
def test_an_interrupt_before_the_update(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = optimizer.ours([parameter((5,), torch.float32, seed=0)], **optimizer.strongest)
    grads_for(params_of(made), seed=1)
    before = entries(made)

    def interrupted(self: plan.Plan, *args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(plan.Plan, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            made.step()
    assert entries(made) == before


def test_what_torchs_own_step_refuses(optimizer: Optimizer) -> None:
    """Its parameters may be half updated, as torch leaves them; those of the engine are not, nor
    are their states, and the groups and what GradScaler set are the optimizer's again.
    """
    params = [parameter((4,), torch.float32, seed=i) for i in range(2)]
    params[0].requires_grad_(False)
    made = optimizer.ours([{"params": params[:1], "differentiable": True}, {"params": params[1:]}])
    grads_for(params, seed=0)
    misfit(params[0], torch.ones(3))
    made.grad_scale, made.found_inf = torch.tensor(1.0), torch.tensor(0.0)
    groups, before = made.param_groups, params[1].detach().clone()
    state = dict(made.state.get(params[1], {}))
    with pytest.raises(RuntimeError, match="size of tensor"):
        made.step()
    assert made.param_groups is groups
    assert {"grad_scale", "found_inf"} <= made.__dict__.keys()
    assert_same_bits(params[1], before)
    assert made.state.get(params[1], {}) == state


def test_a_dense_gradient_after_a_sparse_one() -> None:
    """Torch's step left a sparse momentum buffer, to which nothing dense can be added: torch says
    so, and so do we, in a line that names the state and the remedy, which then works.
    """
    p = parameter((4, 2), torch.float32, seed=0)
    made = fastopt.SGD([p], lr=0.1, momentum=0.9)
    p.grad = torch.eye(4)[:, :2].to_sparse(1)
    made.step()
    before, p.grad = p.detach().clone(), torch.ones(4, 2)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="its state 'momentum_buffer' has layout") as caught:
            made.step()
        assert "to_dense()" in str(caught.value)
        assert len(str(caught.value)) < 300
        assert_same_bits(p, before)
    made.state[p]["momentum_buffer"] = made.state[p]["momentum_buffer"].to_dense()
    made.step()
    buffer = 0.9 * torch.eye(4)[:, :2] + 1
    torch.testing.assert_close(made.state[p]["momentum_buffer"], buffer)
    torch.testing.assert_close(p.detach(), before - 0.1 * buffer)


@pytest.mark.parametrize("where", ["state_dict", "__getstate__", "load_state_dict"])
def test_checkpoints_inside_swap_ema(optimizer: Optimizer, where: str) -> None:
    """There states and weights have changed places: what is saved would be loaded the wrong way."""
    made = optimizer.ours([parameter((5,), torch.float32, seed=0)], ema_decay=0.9)
    run(made, 2)
    arguments = [made.state_dict()] * (where == "load_state_dict")
    with made.swap_ema(), pytest.raises(RuntimeError, match=r"inside swap_ema\(\)"):
        getattr(made, where)(*arguments)
    getattr(made, where)(*arguments)


@pytest.mark.parametrize("at", [0, 1, 2, 3])
def test_swapping_interrupted(
    optimizer: Optimizer, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before or behind the swap of either parameter: every weight and average is back."""
    from fastopt.optim import _average

    made = optimizer.ours([parameter((5,), torch.float32, seed=i) for i in range(2)], ema_decay=0.9)
    run(made, 2)
    tensors = [*params_of(made), *made.ema_parameters()]
    before = [t.detach().clone() for t in tensors]
    put, count = _average._put, [0]

    def interrupted(*given: Any) -> None:
        for act in (lambda: None, lambda: put(*given)):
            act()
            count[0] += 1
            if count[0] == at + 1:
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(_average, "_put", interrupted)
        with pytest.raises(KeyboardInterrupt), made.swap_ema():
            raise AssertionError("swapped in all the same")
    for t, kept in zip(tensors, before, strict=True):
        assert_same_bits(t, kept)
    run(made, 1)
