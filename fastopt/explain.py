"""explain(): which path each parameter of an optimizer takes, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from .backends import batched, cpu, triton
from .memory import Memory, weigh
from .optim._fused import FusedStep
from .routes import parameters, route
from .wrappers import unwrapped

HOW = {"cpu": cpu.how, "triton": triton.how, "batched": batched.how}


@dataclass(frozen=True)
class Bucket:
    """Parameters that take the same path for the same reason.

    `path` and `reason`, `device` and `dtype` as torch names them, how many `tensors` and how many
    `elements` in them. Prints as a line.
    """

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
    """What explain() found; prints as one line a bucket, and one of the memory.

    `optimizer`: its class's name, with those of what is around it. `buckets`: a tuple of
    :class:`Bucket`. `memory`: a :class:`Memory`, or None where the optimizer is not fastopt's.
    """

    optimizer: str
    buckets: tuple[Bucket, ...]
    memory: Memory | None = None  # None where the optimizer is not fastopt's

    def __str__(self) -> str:
        lines = [f"{self.optimizer}:", *(f"  {bucket}" for bucket in self.buckets)]
        return "\n".join(lines + [f"  memory: {self.memory}"] * (self.memory is not None))


def explain(optimizer: Any) -> Explanation:
    """Tell, per bucket of parameters, which path the next `step()` takes and why.

    Paths: "cpu" is fastopt's compiled engine, "triton" its GPU kernel, "batched" torch's operations
    over many parameters at once, "torch" is torch's own step for that class. Nothing is changed;
    what lies in a gradient (a sparse one, say) is judged by the gradients now present.

    Args:
        optimizer: any optimizer, also in a trainer's wrapper (Accelerate's, Lightning's, Fabric's,
            DeepSpeed's, torch's ZeroRedundancyOptimizer), of which the first line then tells: what
            holds one as `optimizer`, `_optimizer` or `optim`. One that is not fastopt's is
            explained as such.

    Returns:
        An :class:`Explanation`: `buckets`, in the order of the parameters, and `memory`, see
        :func:`memory`; `str()` of it is text.

    Raises:
        RuntimeError: where the next step() would refuse a parameter, with the same message. What
            torch's own step refuses, it refuses when it runs.
    """
    optimizer, around = unwrapped(optimizer)
    counts: Counter[tuple[str, str, str, str]] = Counter()
    elements: Counter[tuple[str, str, str, str]] = Counter()
    if isinstance(optimizer, FusedStep):
        routed = [
            (param, route(optimizer, group, param, index))
            for index, (group, param) in enumerate(parameters(optimizer))
        ]
        paths = [
            (p, r.backend, r.reason or HOW[r.backend](p, optimizer.state.get(p, {})))
            for p, r in routed
        ]
    else:
        reason = f"{type(optimizer).__module__}.{type(optimizer).__name__} is not fastopt's"
        paths = [(p, "torch", reason) for g in optimizer.param_groups for p in g["params"]]
    for param, path, reason in paths:
        key = (path, reason, str(param.device), str(param.dtype).removeprefix("torch."))
        counts[key] += 1
        elements[key] += param.numel()
    buckets = tuple(Bucket(*key, counts[key], elements[key]) for key in counts)
    memory = weigh(optimizer) if isinstance(optimizer, FusedStep) else None
    name = type(optimizer).__name__ + f" (in {', in '.join(around[::-1])})" * bool(around)
    return Explanation(name, buckets, memory)
