"""step() inside torch.compile: one opaque call, whose results are those of outside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from support import Optimizer, assert_same_state, parameter, params_of, run
from torch._dynamo.testing import CompileCounter

pytestmark = pytest.mark.parity


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def make(optimizer: Optimizer, **own: Any) -> Any:
    params = [parameter((5, 3), torch.float32, seed=0), parameter((9,), torch.float32, seed=1)]
    return optimizer.ours(params, **{**optimizer.strongest, **own})


@pytest.mark.parametrize("own", [{}, {"max_grad_norm": 0.5, "ema_decay": 0.9}], ids=str)
def test_as_outside(optimizer: Optimizer, own: dict[str, Any]) -> None:
    """Also where graphs come before and after it, and where a scheduler has wrapped it."""
    inside, outside = make(optimizer, **own), make(optimizer, **own)
    schedulers = [torch.optim.lr_scheduler.ExponentialLR(o, 0.5) for o in (inside, outside)]
    counter = CompileCounter()

    def body(x: torch.Tensor) -> torch.Tensor:
        scaled = x * 2
        inside.step()
        return scaled + params_of(inside)[0].sum()

    compiled = torch.compile(body, backend=counter)
    for k in range(4):
        run(outside, 1, seed=k)
        for p, q in zip(params_of(inside), params_of(outside), strict=True):
            p.grad = q.grad.clone()
        found = compiled(torch.ones(3))
        assert torch.equal(found, 2 * torch.ones(3) + params_of(outside)[0].sum())
        for scheduler in schedulers:
            scheduler.step()
        if k == 1:  # the scheduler's wrapper has noted by now that step() was called
            frames = counter.frame_count
    assert frames == counter.frame_count <= 3
    assert_same_state(inside, outside)


def test_closures(optimizer: Optimizer) -> None:
    inside, outside = make(optimizer), make(optimizer)

    def closure_of(made: Any) -> Any:
        def closure() -> torch.Tensor:
            made.zero_grad()
            loss = sum(p.square().sum() for p in params_of(made))
            loss.backward()
            return loss

        return closure

    compiled = torch.compile(lambda: inside.step(closure_of(inside)), backend="eager")
    for _ in range(3):
        assert torch.equal(compiled(), outside.step(closure_of(outside)))
    assert_same_state(inside, outside)


def test_one_graph_is_refused(optimizer: Optimizer) -> None:
    made = make(optimizer)
    with pytest.raises(Exception, match=r"fastopt's step\(\) is compiled already"):
        torch.compile(lambda: made.step(), backend="eager", fullgraph=True)()
