"""A step inside training code: closures, hooks, profiler, subclasses, schedulers, tensor
hyperparameters, default dtype, version counters, torch.compile, tensor subclasses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import (
    BACKEND,
    Optimizer,
    assert_close_state,
    assert_same_bits,
    assert_same_state,
    parameter,
    params_of,
    run,
)
from torch.optim import lr_scheduler
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

import fastopt

pytestmark = pytest.mark.parity


def pair(optimizer: Optimizer, **hyper: Any) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    made = []
    for cls in (optimizer.ours, optimizer.theirs):
        made.append(cls([parameter((3, 5), torch.float32, 0)], **hyper))
    return made[0], made[1]


def one(optimizer: Optimizer, **hyper: Any) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    p = parameter((7,), torch.float32, seed=0)
    p.grad = torch.ones_like(p)
    return p, optimizer.ours([p], **hyper)


def test_closure(optimizer: Optimizer) -> None:
    """Called once, with gradients enabled even under no_grad; its value is returned."""
    a, b = pair(optimizer)
    for made in (a, b):
        p = params_of(made)[0]
        calls = []

        def closure(made: Any = made, p: Any = p, calls: list[bool] = calls) -> torch.Tensor:
            calls.append(torch.is_grad_enabled())
            made.zero_grad()
            loss = (p**2).sum() / 4
            loss.backward()
            return loss.detach()

        with torch.no_grad():
            losses = [made.step(closure) for _ in range(3)]
        assert calls == [True] * 3
        assert losses[0] > losses[1] > losses[2] > 0
    assert_close_state(a, b)


def test_closure_that_fails(optimizer: Optimizer) -> None:
    p, ours = one(optimizer)
    before = p.detach().clone()

    def closure() -> None:
        raise KeyError("from the closure")

    with pytest.raises(KeyError, match="from the closure"):
        ours.step(closure)
    assert_same_bits(p, before)
    ours.step()
    assert differs(p, before)


def differs(p: torch.Tensor, q: torch.Tensor) -> bool:
    return not torch.equal(p, q)


def test_hooks(optimizer: Optimizer) -> None:
    """Local and global, before and after, in torch's order, once each; removed ones are silent."""
    p, ours = one(optimizer)
    calls: list[Any] = []

    def hook(name: str) -> Callable[..., None]:
        return lambda o, args, kwargs: calls.append((name, o is ours, p.detach().clone()))

    ours.step()  # so that a plan without hooks exists
    handles = [
        ours.register_step_pre_hook(hook("pre")),
        ours.register_step_post_hook(hook("post")),
        register_optimizer_step_pre_hook(hook("global pre")),
        register_optimizer_step_post_hook(hook("global post")),
    ]
    try:
        before = p.detach().clone()
        ours.step()
    finally:
        for handle in handles:
            handle.remove()
    assert [(name, own) for name, own, _ in calls] == [
        ("global pre", True),
        ("pre", True),
        ("post", True),
        ("global post", True),
    ]
    assert_same_bits(calls[1][2], before)
    assert differs(calls[2][2], before)
    ours.step()
    assert len(calls) == 4


def test_hooks_see_the_call_as_it_was_made(optimizer: Optimizer) -> None:
    """The same args and kwargs as with torch's class; a pre hook may replace them."""
    seen: list[list[Any]] = []
    for made in pair(optimizer):
        params_of(made)[0].grad = torch.ones(3, 5)
        calls: list[Any] = []
        made.register_step_pre_hook(lambda o, a, k, c=calls: c.append((len(a), a[1:], k)))
        made.register_step_post_hook(lambda o, a, k, c=calls: c.append((len(a), a[1:], k)))
        closure = [].clear  # any function that returns None
        made.step()
        made.step(closure)
        made.step(closure=closure)
        replacement = made.register_step_pre_hook(lambda o, a, k: (a, {"closure": lambda: 5}))
        assert made.step() == 5
        replacement.remove()
        seen.append([(n, len(args), list(kwargs)) for n, args, kwargs in calls])
    assert seen[0] == seen[1]


def test_global_hooks_only(optimizer: Optimizer) -> None:
    _, ours = one(optimizer)
    calls: list[str] = []
    handle = register_optimizer_step_post_hook(lambda o, args, kwargs: calls.append("post"))
    try:
        ours.step()
    finally:
        handle.remove()
    assert calls == ["post"]


@pytest.mark.engine_only("Triton's interpreter calls operators of torch")
def test_profiler_range(optimizer: Optimizer) -> None:
    """Torch's name for the range, and inside it not one operator of torch."""
    _, ours = one(optimizer)
    ours.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        ours.step()
    names = [event.key for event in profile.key_averages()]
    assert f"Optimizer.step#{type(ours).__name__}.step" in names
    assert [name for name in names if name.startswith("aten::")] == []


def test_subclass(optimizer: Optimizer) -> None:
    """A subclass that overrides step: hooks run once around the whole, super().step() inside."""
    calls = []

    class Mine(optimizer.ours):  # type: ignore[misc, name-defined]
        def step(self, closure: Any = None) -> Any:
            calls.append("before")
            loss = super().step(closure)
            calls.append("after")
            return loss

    p, q = (parameter((7,), torch.float32, seed=0) for _ in range(2))
    mine, plain = Mine([p]), optimizer.ours([q])
    mine.register_step_pre_hook(lambda *_: calls.append("pre"))
    mine.register_step_post_hook(lambda *_: calls.append("post"))
    run(mine, 2)
    run(plain, 2)
    assert calls == ["pre", "before", "after", "post"] * 2
    assert_same_state(mine, plain)


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda o: lr_scheduler.StepLR(o, step_size=2, gamma=0.5),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda k: 1 / (1 + k)),
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)],
        milestones=[2],
    ),
    "warm restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=4),
}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(optimizer: Optimizer, scheduler: str) -> None:
    a, b = pair(optimizer, lr=0.1)
    schedules = [SCHEDULERS[scheduler](made) for made in (a, b)]
    lrs = set()
    for k in range(6):
        run(a, 1, seed=k)
        run(b, 1, seed=k)
        for schedule in schedules:
            schedule.step()
        lrs.add(a.param_groups[0]["lr"])
        assert_close_state(a, b)
    assert len(lrs) > 2


def test_plateau_scheduler(optimizer: Optimizer) -> None:
    a, b = pair(optimizer, lr=0.1)
    schedules = [lr_scheduler.ReduceLROnPlateau(made, patience=0) for made in (a, b)]
    for k in range(4):
        for made, schedule in zip((a, b), schedules, strict=True):
            run(made, 1, seed=k)
            schedule.step(1.0)
    assert a.param_groups[0]["lr"] < 0.01
    assert_close_state(a, b)


def test_one_cycle(optimizer: Optimizer) -> None:
    """OneCycleLR cycles the momentum too, or beta1 where there are betas."""
    cycles = optimizer.has("betas") or optimizer.has("momentum")
    a, b = pair(optimizer, **({"momentum": 0.9} if optimizer.has("momentum") else {}))
    schedules = [
        lr_scheduler.OneCycleLR(made, max_lr=0.1, total_steps=9, cycle_momentum=cycles)
        for made in (a, b)
    ]
    momenta = set()
    for k in range(8):
        for made, schedule in zip((a, b), schedules, strict=True):
            run(made, 1, seed=k)
            schedule.step()
        group = a.param_groups[0]
        momenta.add(group["betas"][0] if "betas" in group else group.get("momentum"))
    assert len(momenta) > 4 or not cycles
    assert_close_state(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tensor_lr(optimizer: Optimizer, dtype: torch.dtype) -> None:
    """A tensor lr gives what its number gives, also after it was changed in place."""
    lr = torch.tensor(0.01, dtype=dtype)
    (a, _), (b, _) = (pair(optimizer, lr=x) for x in (lr, lr.item()))
    run(a, 2)
    run(b, 2)
    lr.fill_(0.3)
    b.param_groups[0]["lr"] = lr.item()
    run(a, 2, seed=5)
    run(b, 2, seed=5)
    assert_same_state(a, b)
    assert a.param_groups[0]["lr"] is lr


def test_tensor_lr_that_requires_grad(optimizer: Optimizer) -> None:
    lr = torch.tensor(0.01, requires_grad=True)
    a, b = (pair(optimizer, lr=x)[0] for x in (lr, lr.item()))
    run(a, 2)
    run(b, 2)
    assert_same_state(a, b)


@pytest.mark.parametrize("cls", [fastopt.Adam, fastopt.AdamW])
def test_tensor_betas(cls: type[torch.optim.Optimizer]) -> None:
    betas = torch.tensor([[0.8]], dtype=torch.float64), torch.tensor(0.97, dtype=torch.float64)
    made = []
    for given in (betas, (0.8, 0.97)):
        made.append(cls([parameter((9,), torch.float32, 0)], betas=given))
        run(made[-1], 3)
    assert_same_state(*made)


@pytest.mark.parametrize("flags", [{}, {"fused": True}], ids=str)
def test_default_dtype_of_float64(optimizer: Optimizer, flags: dict[str, bool]) -> None:
    """The step tensor has the dtype that torch gives it."""
    if flags and "fused" in optimizer.ours._arguments:  # type: ignore[attr-defined]
        pytest.skip("torch's class has no fused")
    torch.set_default_dtype(torch.float64)
    a, b = pair(optimizer, **flags)
    run(a, 3)
    run(b, 3)
    assert_close_state(a, b)
    assert {s["step"].dtype for s in a.state.values() if "step" in s} <= {
        torch.float32 if flags else torch.float64
    }


def test_version_counters(optimizer: Optimizer) -> None:
    """Autograd knows of the write: counters grow, a saved parameter's backward is refused."""
    p, ours = one(optimizer)
    skipped = torch.nn.Parameter(torch.ones(3))
    ours.add_param_group({"params": [skipped]})
    loss = (p * p).sum() + (skipped * skipped).sum()
    versions = p._version, skipped._version
    ours.step()
    assert p._version > versions[0]
    assert skipped._version == versions[1]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_under_inference_and_no_grad(optimizer: Optimizer) -> None:
    made = []
    for context in (torch.enable_grad, torch.no_grad):
        p, ours = one(optimizer)
        with context():
            run(ours, 2)
        assert p.requires_grad
        assert p.is_leaf
        made.append(ours)
    assert_same_state(*made)


class Tagged(torch.Tensor):
    """A tensor subclass, as DTensor is one."""


def test_tensor_subclass(optimizer: Optimizer) -> None:
    """A parameter or gradient of a subclass takes torch's own step, its neighbours the engine's."""
    made = []
    for cls in (optimizer.ours, optimizer.theirs):
        params = [parameter((4,), torch.float32, seed=i) for i in range(3)]
        params[1] = torch.nn.Parameter(params[1].detach().as_subclass(Tagged))
        assert type(params[1]) is Tagged
        made.append(cls(params))
        for k in range(3):
            for i, p in enumerate(params):
                p.grad = torch.full((4,), 1.0 + k + i)
            if k == 1:
                params[2].grad = params[2].grad.as_subclass(Tagged)
            made[-1].step()
    assert_close_state(*made)
    paths = [bucket.path for bucket in fastopt.explain(made[0]).buckets]
    assert paths == [BACKEND, "torch"]


def model_and_data() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(64, 3)
    ).to(memory_format=torch.channels_last)
    return model, torch.randn(8, 1, 6, 6), torch.randint(3, (8,))


# What torch.compile imports uses torch's own deprecated functions.
compiles = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@compiles
def test_compiled_model(optimizer: Optimizer) -> None:
    made = []
    for compiled in (False, True):
        model, x, y = model_and_data()
        ours = optimizer.ours(model.parameters(), lr=0.01)
        forward = torch.compile(model, backend="eager") if compiled else model
        losses = []
        for _ in range(5):
            ours.zero_grad()
            loss = torch.nn.functional.cross_entropy(forward(x), y)
            loss.backward()
            ours.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0]
        made.append(ours)
    assert_close_state(*made)


@compiles
def test_compiled_step(optimizer: Optimizer) -> None:
    """Under torch.compile a step is torch's own, which it can trace; the states are the same."""
    a, b = pair(optimizer, lr=0.01)
    compiled = torch.compile(a.step, backend="eager")
    for k in range(4):
        for made, step in ((a, compiled if k % 2 else a.step), (b, b.step)):
            params_of(made)[0].grad = torch.full((3, 5), 1.0 + k)
            step()
    assert_close_state(a, b)
