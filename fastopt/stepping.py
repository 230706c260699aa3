"""What passes between an optimizer and the way it steps: what GradScaler hands over, what became of
a step, then the optimizer itself as its step sees it. Everything imports this, it imports nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Scaler(NamedTuple):
    """What GradScaler handed over, on whatever device it lives."""

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    @property
    def mode(self) -> int:
        """For kernels: 0 nothing, 1 skips on found_inf, 2 unscales too."""
        return 2 if self.unscales else int(self.found_inf is not None)

    @property
    def unscales(self) -> bool:
        """Whether gradients are divided in place."""
        return self.grad_scale is not None


NO_SCALER = Scaler()

# What became of a step: None where it was done; "skipped" where gradients are not finite; (index of
# a parameter or -1, reason) where something is not as planned, and no tensor has been changed.
Outcome: TypeAlias = "tuple[int, str] | Literal['skipped'] | None"
Stats: TypeAlias = "tuple[int, float, float, float]"  # parameter; norms of gradient, update, weight


class Work(NamedTuple):
    """A parameter to update, by a rule over whole tensors."""

    place: int  # over all groups
    backend: str
    group: dict[str, Any]
    param: Tensor


class Changed(Exception):
    """The parameter `index` (-1: none in particular) is not as planned; nothing was written."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(reason)
        self.index = index


class Stepping(torch.optim.Optimizer):
    """An optimizer whose update is a rule that fastopt has."""

    _rule: ClassVar[str]
    norm_group: ProcessGroup | None

    def _torch_step_of(self, params: Iterable[Tensor], grad_scale: float | None) -> None:
        """Torch's own step for these parameters only."""
        raise NotImplementedError

    def _whole_step_of(self, work: Sequence[Work], first: Callable[[], None] | None) -> Outcome:
        """Of a rule over whole tensors (fastopt/declared.py): update these parameters once
        all checks are done, and then `first`.
        """
        raise NotImplementedError

    def _skips_on(self, device: torch.device) -> Tensor:
        """The count of steps left out that a device keeps, as the host cannot know."""
        raise NotImplementedError
