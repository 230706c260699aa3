"""memory(): what training with an optimizer takes, told before it is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ranks
from .optim import AdamW
from .optim._fused import FusedStep
from .precision import bytes_of
from .routes import parameters
from .wrappers import unwrapped


@dataclass(frozen=True)
class Memory:
    """Bytes by kind: `weights`, `gradients`, each state with its scales, `master_low`, `ema`, and
    the `numbers` that parameters carry. Prints as bytes a parameter.

    `elements`: how many numbers the parameters have. `bytes`: a dict by kind.
    """

    elements: int
    bytes: dict[str, int]

    @property
    def total(self) -> int:
        """Of all kinds."""
        return sum(self.bytes.values())

    @property
    def states(self) -> int:
        """All but the weights and their gradients."""
        return self.total - self.bytes.get("weights", 0) - self.bytes.get("gradients", 0)

    def per_parameter(self, count: float) -> float:
        """So many bytes, divided by the number of elements."""
        return count / self.elements if self.elements else 0.0

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {self.per_parameter(n):.2f}" for kind, n in self.bytes.items())
        return f"{self.per_parameter(self.total):.2f} bytes a parameter ({kinds})"


def weigh(optimizer: FusedStep) -> Memory:
    """What an optimizer's parameters take, once each has had a step."""
    count, elements = Counter[str](), 0
    for group, param in parameters(optimizer):
        if param.requires_grad:
            count.update(bytes_of(group, param, optimizer._rule))
            elements += ranks.local(param).numel()
    return Memory(elements, dict(count))


def memory(
    params: torch.nn.Module | torch.optim.Optimizer | Iterable[Tensor],
    optimizer: type[FusedStep] = AdamW,
    **arguments: Any,
) -> Memory:
    """Estimate the memory of a training: weights, gradients and all that the optimizer keeps.

    Nothing is allocated; parameters on the meta device are as good as any::

        with torch.device("meta"):
            model = Transformer()
        print(fastopt.memory(model, fastopt.AdamW, state_bits=8))

    Args:
        params: a model, its parameters (or param groups), or an optimizer of fastopt's, also in
            a trainer's wrapper as in :func:`explain`, which then needs no further arguments.
        optimizer: the class (default: AdamW).
        arguments: what it would be made with.

    Returns:
        A :class:`Memory`, of this process: of a DTensor, its shard. Gradients are taken to have
        their parameters' dtype; activations are not counted, nor parameters that require no
        gradient.

    Raises:
        TypeError: an optimizer that is not fastopt's.
        ValueError: an argument that the class refuses.
    """
    if not isinstance(params, torch.nn.Module):
        params, _ = unwrapped(params)
    if isinstance(params, torch.optim.Optimizer):
        if not isinstance(params, FusedStep):
            name = f"{type(params).__module__}.{type(params).__name__}"
            raise TypeError(f"memory() knows fastopt's optimizers; got a {name}")
        return weigh(params)
    given = params.parameters() if isinstance(params, torch.nn.Module) else params
    return weigh(optimizer(given, **arguments))
