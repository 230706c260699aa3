"""explain(): which path each parameter of an optimizer takes, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch

from . import _core
from .backends.triton.slots import staged
from .optim._fused import FusedStep
from .routes import parameters, route


@dataclass(frozen=True)
class Bucket:
    """Parameters that take the same path for the same reason."""

    path: str
    reason: str
    device: str
    dtype: str
    tensors: int
    elements: int

    def __str__(self) -> str:
        count = f"{self.tensors} tensor{'s' * (self.tensors != 1)}, {self.elements:,} elements"
        return f"{self.path}: {count}, {self.dtype} on {self.device} ({self.reason})"


@dataclass(frozen=True)
class Explanation:
    """What explain() found; prints as one line a bucket."""

    optimizer: str
    buckets: tuple[Bucket, ...]

    def __str__(self) -> str:
        return "\n".join([f"{self.optimizer}:", *(f"  {bucket}" for bucket in self.buckets)])


def how(optimizer: FusedStep, param: torch.Tensor, backend: str) -> str:
    """What one of fastopt's own backends does with a parameter."""
    if backend == "cpu":
        return f"compiled engine, {_core.isa()}"
    launches = "one launch per combination of dtypes"
    state = optimizer.state.get(param, {})
    others = [param.grad, *(state.get(n) for n in state if n != "step")]
    same_shape = [t for t in others if isinstance(t, torch.Tensor) and t.shape == param.shape]
    if staged(param, same_shape):
        return f"{launches}; copied to and from a dense layout, as its tensors lie apart"
    return launches


def explain(optimizer: torch.optim.Optimizer) -> Explanation:
    """Tell, per bucket of parameters, which path the next `step()` takes and why.

    Paths: "cpu" is fastopt's compiled engine, "triton" its GPU kernel, "torch" is torch's own step
    for that class. Nothing is changed; what lies in a gradient (a sparse one, say) is judged by the
    gradients now present.

    Args:
        optimizer: any optimizer; one that is not fastopt's is explained as such.

    Returns:
        An :class:`Explanation`: `buckets`, in the order of the parameters; `str()` of it is text.

    Raises:
        RuntimeError: where the next step() would refuse a parameter, with the same message. What
            torch's own step refuses, it refuses when it runs.
    """
    counts: Counter[tuple[str, str, str, str]] = Counter()
    elements: Counter[tuple[str, str, str, str]] = Counter()
    if isinstance(optimizer, FusedStep):
        routed = [
            (param, route(optimizer, group, param, index))
            for index, (group, param) in enumerate(parameters(optimizer))
        ]
        paths = [(p, r.backend, r.reason or how(optimizer, p, r.backend)) for p, r in routed]
    else:
        reason = f"{type(optimizer).__module__}.{type(optimizer).__name__} is not fastopt's"
        paths = [(p, "torch", reason) for g in optimizer.param_groups for p in g["params"]]
    for param, path, reason in paths:
        key = (path, reason, str(param.device), str(param.dtype).removeprefix("torch."))
        counts[key] += 1
        elements[key] += param.numel()
    buckets = tuple(Bucket(*key, counts[key], elements[key]) for key in counts)
    return Explanation(type(optimizer).__name__, buckets)
