"""What tests share: the row of an optimizer under test, tensors, bits, the reference stepped."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastopt import _core

# The backend that parameters on the CPU take: conftest.py says when it is Triton's interpreter.
ON_TRITON = os.environ.get("FASTOPT_BACKEND") == "triton"
BACKEND = "triton" if ON_TRITON else "cpu"


def rounds_fma_twice() -> bool:
    """Whether this is a Triton interpreter that multiplies and then adds: 3.6 is, 3.9 is not."""
    if not ON_TRITON:
        return False
    from triton.runtime import interpreter

    return not hasattr(interpreter._interpreter, "fma_fp32")


# Then nothing has its exact bits: each of the at most five fused multiply-adds of an update is one
# rounding off, which later steps carry on and a difference of nearly equal numbers (centered
# RMSprop's variance) enlarges. In units of eps, of the largest number where it is above 1.
UNITS = 400 if rounds_fma_twice() else 0

REAL_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ALL_DTYPES = [*REAL_DTYPES, torch.complex64, torch.complex128]
# What parameters carry beside tensors of their own shape: 0-d states, such as their step count.
NUMBERS = {name for rule in _core.rules() for name, _ in _core.carried(rule)}
INTEGER = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Optimizer:
    """One optimizer under test: a table row that buys it the whole suite."""

    name: str
    ours: type[torch.optim.Optimizer]
    theirs: type[torch.optim.Optimizer]
    reference: Callable[..., tuple[np.ndarray, dict[str, np.ndarray]]]
    variants: dict[str, dict[str, Any]]
    extensions: dict[str, dict[str, Any]]  # variants that torch's class does not have
    changes: Sequence[dict[str, Any]] = field(default=({},))  # of the group, before each step
    continuous: bool = True  # else a rounding may move a parameter by twice the learning rate
    # None where torch has none.
    ours_functional: Callable[..., None] | None = None
    theirs_functional: Callable[..., None] | None = None
    functional_states: Sequence[str] = ()  # the lists of torch's functional form, in its order
    fused: bool = False  # torch's fused step has the reference's bits: see test_fused

    def __str__(self) -> str:
        return self.name

    @property
    def strongest(self) -> dict[str, Any]:
        """The hyperparameters of the variant with the most of them."""
        return list(self.variants.values())[-1]

    def has(self, argument: str) -> bool:
        """Whether our class takes it."""
        return argument in self.ours([torch.ones(1)]).defaults

    def starts(self, **hyper: Any) -> dict[str, float | str | None]:
        """What states and numbers are before their first step; None: nothing, "param": as it is."""
        made = self.ours([torch.ones(1)], **hyper)
        rule, group = made._rule, made.param_groups[0]  # type: ignore[attr-defined]
        return dict(_core.carried(rule, group)) | dict(_core.states(rule, group))


def assert_begun(state: dict[str, Tensor], p: Tensor, starts: dict[str, Any]) -> None:
    """States that have had no step."""
    for name, t in state.items():
        start = starts.get(name) or 0
        assert torch.equal(t, p if start == "param" else torch.full_like(t, start)), name


@dataclass(frozen=True)
class Case:
    """One optimizer with one choice of hyperparameters."""

    optimizer: Optimizer
    variant: str

    @property
    def hyper(self) -> dict[str, Any]:
        return dict((self.optimizer.variants | self.optimizer.extensions)[self.variant])

    def __str__(self) -> str:
        return f"{self.optimizer.name}-{self.variant}"


def discover() -> list[Optimizer]:
    files = sorted((Path(__file__).parent / "cases").glob("[a-z]*.py"))
    return [importlib.import_module(f"cases.{file.stem}").OPTIMIZER for file in files]


def unlike() -> list[Optimizer]:
    """One of each kind: those whose states hold and begin with the same, whose parameters carry no
    more than a step count, or all more, and whose updates wait or not count as one. For tests of
    several processes, whose time is not in the arithmetic; with FASTOPT_TESTS=all, every one.
    """
    found: dict[Any, Optimizer] = {}
    for optimizer in discover():
        rule = optimizer.ours._rule  # type: ignore[attr-defined]
        kinds = sorted({kind for states in _core.variants(rule) for kind in states.values()})
        starts = {isinstance(start, str) for start in optimizer.starts().values()}
        carried = len(_core.carried(rule)) > 1
        key = [kinds, sorted(starts), carried, _core.waits_for_norms(rule)]
        if os.environ.get("FASTOPT_TESTS") == "all":
            key.append(optimizer.name)
        found.setdefault(repr(key), optimizer)
    return [*found.values()]


def optimizer_named(name: str) -> Optimizer:
    return next(o for o in discover() if o.name == name)


def values(shape: Any, dtype: torch.dtype, seed: int, wide: bool = False) -> Tensor:
    """Normal numbers; `wide` spreads their magnitudes and puts some zeros among them."""
    rng = np.random.default_rng(seed)
    size = (*shape, 2) if dtype.is_complex else tuple(shape)
    x = rng.standard_normal(size)
    if wide:
        x = x * 10.0 ** rng.uniform(-4, 1, x.shape) * (rng.random(x.shape) > 0.05)
    t = torch.from_numpy(np.asarray(x))
    return (torch.complex(t[..., 0], t[..., 1]) if dtype.is_complex else t).to(dtype)


def parameter(shape: Any, dtype: torch.dtype, seed: int) -> torch.nn.Parameter:
    return torch.nn.Parameter(values(shape, dtype, seed))


def storage_name(dtype: torch.dtype) -> str:
    """What fastopt.rules calls the storage of this dtype's real numbers."""
    return str(dtype.to_real()).removeprefix("torch.")


def to_numpy(t: Tensor) -> np.ndarray:
    """The real numbers of a tensor, in the type that the reference computes in."""
    t = t.detach()
    t = torch.view_as_real(t) if t.is_complex() else t
    return (t if t.dtype == torch.float64 else t.float()).numpy(force=True).copy()


def differing(a: Tensor | np.ndarray, b: Tensor | np.ndarray) -> int:
    """How many numbers differ in a bit, all NaNs counting as one."""

    def pattern(x: Tensor | np.ndarray) -> Tensor:
        t = torch.from_numpy(np.array(x)) if isinstance(x, np.ndarray | np.generic) else x.detach()
        t = torch.view_as_real(t.resolve_conj()) if t.is_complex() else t
        if t.is_floating_point():
            t = torch.where(t.isnan(), torch.full_like(t, torch.nan), t)
        return t.contiguous().view(INTEGER[t.element_size()])

    left, right = pattern(a), pattern(b)
    assert left.dtype == right.dtype
    assert left.shape == right.shape
    return int((left != right).sum())


def assert_same_bits(a: Tensor | np.ndarray, b: Tensor | np.ndarray, what: object = "") -> None:
    """Equal in every bit; under an interpreter that rounds twice, nearly so: see UNITS."""
    count = differing(a, b)
    if count and UNITS:
        assert_close_bits(torch.as_tensor(a).detach(), torch.as_tensor(b).detach(), what)
    elif count:
        raise AssertionError(f"{what}: {count} of {np.prod(a.shape)} numbers differ:\n{a}\n{b}")


def assert_close_bits(a: Tensor, b: Tensor, what: object) -> None:
    tolerance = UNITS * torch.finfo(a.dtype).eps
    largest = b.abs().nan_to_num(posinf=0).max().item()
    torch.testing.assert_close(
        a,
        b,
        rtol=tolerance,
        atol=tolerance * max(1.0, largest),
        equal_nan=True,
        msg=lambda m: f"{what}: {m}",
    )


def assert_same_state(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    """Same groups of parameters, same states, every tensor with the same bits."""
    for group_a, group_b in zip(a.param_groups, b.param_groups, strict=True):
        for i, (p, q) in enumerate(zip(group_a["params"], group_b["params"], strict=True)):
            assert_same_bits(p, q, f"parameter {i}")
            state_p, state_q = a.state.get(p, {}), b.state.get(q, {})
            assert state_p.keys() == state_q.keys()
            for name, t in state_p.items():
                assert_same_bits(t, state_q[name], f"{name} of parameter {i}")


class Stepped:
    """The NumPy reference, stepping one parameter as an optimizer would."""

    def __init__(self, optimizer: Optimizer, param: Tensor, dtype: str = "", **hyper: Any) -> None:
        self.rule, self.hyper, self.count = optimizer.reference, hyper, 0
        self.p, self.states = to_numpy(param), {}
        self.dtype = dtype or storage_name(param.dtype)

    def step(self, grad: Tensor, **changes: Any) -> None:
        self.hyper.update(changes)
        self.count += 1
        self.p, self.states = self.rule(
            self.p,
            to_numpy(grad),
            self.states,
            step=self.count,
            dtype=self.dtype,
            **self.hyper,
        )

    def check(self, param: Tensor, state: dict[str, Tensor]) -> None:
        """The parameter and all of its states have the reference's bits."""
        assert_same_bits(to_numpy(param), self.p.astype(to_numpy(param).dtype), "parameter")
        assert set(state) - {"step"} == set(self.states)
        for name, expected in self.states.items():
            assert_same_bits(to_numpy(state[name]), expected, name)
        if "step" in state:
            assert state["step"].item() == self.count


def grads_for(params: Sequence[Tensor], seed: int) -> None:
    """The same gradients for the same shapes, dtypes and seed."""
    for i, p in enumerate(params):
        p.grad = values(p.shape, p.dtype, seed=1000 * seed + i)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def run(optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    for k in range(steps):
        grads_for(params_of(optimizer), seed + k)
        optimizer.step()


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that Triton's backend launches from now on, in their order."""
    from fastopt.backends.triton import calls

    names: list[str] = []
    launch = calls.run

    def run_calls(found: Sequence[Any]) -> None:
        names.extend(call.function.__name__ for call in found)
        launch(found)

    monkeypatch.setattr(calls, "run", run_calls)
    return names


def assert_close_state(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Parameters and states as torch has them: names, types, layouts, and values all but last bits.

    The values' own tests are test_reference.py and test_torch.py; here a path not taken, a scale
    forgotten or a step too many must show.
    """
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        tolerance = 0.02 if p.dtype in (torch.bfloat16, torch.float16) else 2e-5
        close = {"rtol": tolerance, "atol": tolerance}
        torch.testing.assert_close(p, q, **close)
        state, expected = ours.state.get(p, {}), theirs.state.get(q, {})
        assert state.keys() == expected.keys()
        for name, t in state.items():
            # Of numbers, torch keeps the type of `step` alone when it loads a checkpoint.
            typed = {"check_dtype": name not in NUMBERS - {"step"}}
            torch.testing.assert_close(
                t, expected[name], **close, **typed, msg=lambda m, n=name: f"{n}: {m}"
            )
