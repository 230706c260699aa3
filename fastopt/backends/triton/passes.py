"""The passes around the update: what a group asks of its kernel, then what all kernels are told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...arguments import setting
from ...stepping import Scaler
from .tables import Table


class Switches(NamedTuple):
    """What a bucket's kernel does beside its rule; names are the kernel's constants."""

    PREPARES: bool = False  # clips by norm or value, adds l1
    AVERAGES: bool = False
    CLEARS: bool = False
    TRACKS: bool = False


def switches(group: dict[str, Any]) -> Switches:
    """Those of a param group."""
    limits = (setting(group, "max_grad_norm"), setting(group, "max_grad_value"))
    return Switches(
        any(limit is not None for limit in limits) or setting(group, "l1") != 0,
        setting(group, "ema_decay") is not None,
        bool(setting(group, "clear_grads")),
        bool(setting(group, "track_stats")),
    )


def measures(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether the norm of the gradients is asked for."""
    return skips_nonfinite(groups) or any(
        setting(group, "max_grad_norm") is not None for group in groups
    )


def skips_nonfinite(groups: Sequence[dict[str, Any]]) -> bool:
    return any(setting(group, "skip_nonfinite") for group in groups)


class Passes:
    """The groups' numbers, and what is measured before the update.

    `numbers`: [max_grad_norm or -1, max_grad_value, l1, 1 - ema_decay] a group, filled by the
    compiled core; `factors`: what its gradients are clipped by; `skip`: not 0 where the step is to
    be left out. Everything is allocated once, and nothing of it is read by a step's host.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], device: torch.device, skipped: Tensor
    ) -> None:
        self.device = device
        self.measures, self.skips_nonfinite = measures(groups), skips_nonfinite(groups)
        self.skipped = skipped  # int64: steps left out so far
        self.norm = torch.zeros((), dtype=torch.float64, device=device)
        self.factors = torch.ones(len(groups), dtype=torch.float64, device=device)
        self.skip = torch.zeros((), device=device)
        self._table = Table(device, {"numbers": (torch.float64, (len(groups), 4))})

    @property
    def numbers_on_host(self) -> Any:
        return self._table.host["numbers"]

    @property
    def numbers(self) -> Tensor:
        return self._table.device["numbers"]

    def tables(self) -> list[Tensor]:
        """Everything on the device that a launch reads."""
        return [self.norm, self.factors, self.skip, self._table.storage, self.skipped]

    def scaler(self, scaler: Scaler) -> Scaler:
        """What the update takes for GradScaler."""
        return scaler._replace(found_inf=self.skip) if self.skips_nonfinite else scaler

    def upload(self) -> None:
        """Send the groups' numbers in the order of the current stream."""
        self._table.upload()
