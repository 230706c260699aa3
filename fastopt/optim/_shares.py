"""A step within backward(), share by share: what is told beforehand, one share, all of them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..plan import Plan
from ..ranks import Agreement


class Measured(Agreement):
    """What all processes agree on, where it was found before the step."""

    def __init__(self, params: list[Tensor]) -> None:
        super().__init__(params, None)
        self.found: tuple[float, bool] | None = None

    @property
    def needed(self) -> bool:
        return self.found is not None or super().needed

    def total(self, squares: list[float], finite: bool) -> tuple[float, bool]:
        assert self.found is not None
        return self.found


@dataclass(eq=False)
class Share:
    """Parameters that are updated together, by their places."""

    members: frozenset[int]
    plan: Plan | None = None


@dataclass(eq=False)
class Shares:
    """Those of an optimizer, found in its first such backward pass by the order in which gradients
    came.
    """

    params: list[Tensor]
    of: dict[int, Share] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.measured = Measured(self.params)
        self.places: dict[Tensor, list[int]] = {}  # several of one that is listed twice
        for place, param in enumerate(self.params):
            self.places.setdefault(param, []).append(place)

    def add(self, members: list[int]) -> Share:
        share = Share(frozenset(members))
        self.of.update(dict.fromkeys(members, share))
        return share
