"""What the for-loops in torch's operations share that take the place of classes which torch lacks:
their arguments, checked, then the loop over groups and parameters.

They are the path of what the engine does not take, and what its bits are compared with.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import (
    _get_scalar_dtype,
    _use_grad_for_differentiable,
)

NOT_NEGATIVE = (
    "eps",
    "weight_decay",
    "momentum",
    "trust_coefficient",
    "alpha",
    "beta3_warmup",
    "alpha_warmup",
    "warmup_steps",
)


# Of every class, by their names alone, as torch's classes have them.
KEYWORDS = {"foreach": None, "maximize": False, "differentiable": False}


class Loop(torch.optim.Optimizer):
    """One rule's for-loop: :meth:`_update` over the real numbers of each parameter."""

    # What it takes behind the parameters, with the defaults: in this order; by name alone.
    _given: ClassVar[dict[str, Any]] = {}
    _keywords: ClassVar[dict[str, Any]] = KEYWORDS
    _numbers: ClassVar[dict[str, float]] = {}  # that a parameter carries, with what they begin as
    _takes: ClassVar[Signature]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_given" in cls.__dict__:
            either, alone = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
            takes = [Parameter("params", either)]
            takes += [Parameter(k, either, default=d) for k, d in cls._given.items()]
            takes += [Parameter(k, alone, default=d) for k, d in cls._keywords.items()]
            cls._takes = cls.__signature__ = Signature(takes)  # type: ignore[attr-defined]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        bound = self._takes.bind(*args, **kwargs)
        bound.apply_defaults()
        params, defaults = bound.arguments.pop("params"), bound.arguments
        self._check(defaults)
        super().__init__(params, defaults)

    def _check(self, defaults: dict[str, Any]) -> None:
        """Raise ValueError where an argument is out of its range, as torch's classes do."""
        lr = defaults["lr"]
        if isinstance(lr, Tensor) and lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
        if not lr >= 0:
            raise ValueError(f"Invalid learning rate: {lr}")
        for index, beta in enumerate(defaults.get("betas", ())):
            if not 0 <= beta < 1:
                raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
        for name in NOT_NEGATIVE:
            if defaults.get(name) is not None and not defaults[name] >= 0:
                raise ValueError(f"Invalid {name} value: {defaults[name]}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            for p in group["params"]:
                held = self.state.get(p, {})
                for name in self._numbers.keys() & held.keys():
                    if not isinstance(held[name], Tensor):  # as other packages keep them
                        held[name] = number(held[name], group)

    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        having = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        for group, p in having:  # all before the first update: they may share memory
            self._make_ready(group, p)
        for group, p in having:
            lr = group["lr"].item() if isinstance(group["lr"], Tensor) else group["lr"]
            grad = real(-p.grad if group["maximize"] else p.grad)
            names = (*self._numbers, *self._states(group))
            state = {name: real(self.state[p][name]) for name in names}
            self._update({**group, "lr": lr}, real(p), grad, state)
        return loss

    def _make_ready(self, group: dict[str, Any], p: Tensor) -> None:
        """Check a parameter and make what it lacks of numbers and states."""
        if p.grad is not None and p.grad.is_sparse:
            raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
        state = self.state[p]
        for name, start in self._numbers.items():
            if name not in state:
                state[name] = number(start, group)
        for name in self._states(group):
            if name not in state:
                state[name] = self._begin(name, p)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        """The names of a parameter's states, beside its numbers."""
        raise NotImplementedError

    def _begin(self, name: str, p: Tensor) -> Tensor:
        """A state before its first step."""
        return torch.zeros_like(p, memory_format=torch.preserve_format)

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        """One step of a parameter, in place."""
        raise NotImplementedError


def number(x: float, group: dict[str, Any]) -> Tensor:
    """As torch's classes keep their step counts."""
    dtype = _get_scalar_dtype(is_fused=group.get("fused"))  # type: ignore[no-untyped-call]
    return torch.tensor(float(x), dtype=dtype)


def real(t: Tensor) -> Tensor:
    """Its real and imaginary parts, where it is complex."""
    return torch.view_as_real(t) if t.is_complex() else t


def counted(state: dict[str, Tensor]) -> float:
    """Which step this is, from 1."""
    state["step"] += 1
    return state["step"].item()


def norm(t: Tensor) -> Tensor:
    """The L2 norm in double, where there are doubles; of a DTensor, over all of its parts."""
    dtype = torch.float32 if t.device.type == "mps" else torch.float64
    found: Tensor = torch.linalg.vector_norm(t, dtype=dtype)
    whole: Tensor = found.full_tensor() if hasattr(found, "full_tensor") else found
    return whole
