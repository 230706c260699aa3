"""The passes around the update: what a group asks of its kernel, then what all buckets share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from . import Scaler, calls, kernel, norm
from .calls import Call, options
from .tables import Table

if TYPE_CHECKING:
    from .bucket import Bucket

# Of finish_norm, one program: two sums a thread and row.
FINISH_WARPS = 16


class Switches(NamedTuple):
    """What a bucket's kernel does beside its rule; names are the kernel's constants."""

    PREPARES: bool = False  # clips by norm or value, adds l1
    AVERAGES: bool = False
    CLEARS: bool = False
    TRACKS: bool = False


def switches(group: dict[str, Any]) -> Switches:
    """Those of a param group."""
    limits = (group["max_grad_norm"], group["max_grad_value"])
    return Switches(
        any(limit is not None for limit in limits) or group["l1"] != 0,
        group["ema_decay"] is not None,
        bool(group["clear_grads"]),
        bool(group["track_stats"]),
    )


def measures(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether the norm of the gradients is asked for."""
    return skips_nonfinite(groups) or any(g["max_grad_norm"] is not None for g in groups)


def skips_nonfinite(groups: Sequence[dict[str, Any]]) -> bool:
    return any(group["skip_nonfinite"] for group in groups)


class Passes:
    """What a launch's buckets share: the groups' numbers, and what is measured before the update.

    `numbers`: [max_grad_norm or -1, max_grad_value, l1, 1 - ema_decay] a group, filled by the
    compiled core. Everything is allocated once, and nothing of it is read by a step's host.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], device: torch.device, skipped: Tensor
    ) -> None:
        self.device = device
        self.measures, self.skips_nonfinite = measures(groups), skips_nonfinite(groups)
        self.skipped = skipped  # int64: steps left out so far
        self.norm = torch.zeros((), dtype=torch.float64, device=device)
        self.factors = torch.ones(len(groups), dtype=torch.float64, device=device)
        self._groups = len(groups)
        self._skip = torch.zeros((), device=device)
        self._sums = torch.empty(0, dtype=torch.float64, device=device)
        self._nonfinite = torch.empty(0, dtype=torch.int32, device=device)
        self._blocks = np.empty(0, np.int64)
        self._present = b""
        self._compiled = False
        self._table = Table(device, {"numbers": (torch.float64, (len(groups), 4))})

    @property
    def numbers_on_host(self) -> Any:
        return self._table.host["numbers"]

    @property
    def numbers(self) -> Tensor:
        return self._table.device["numbers"]

    def lay_out(self, buckets: Sequence[Bucket]) -> None:
        """Make room for the block sums of these buckets."""
        self._buckets = buckets
        if not self.measures:
            return
        slots = [slot for bucket in buckets for slot in bucket.slots]
        blocks = np.concatenate([[0], *(bucket.norm_blocks for bucket in buckets)])[1:]
        self._blocks = blocks.astype(np.int64)
        self._order = np.argsort([slot.index for slot in slots], kind="stable")
        total = int(self._blocks.sum())
        self._sums = torch.zeros(total, dtype=torch.float64, device=self.device)
        self._nonfinite = torch.zeros(total, dtype=torch.int32, device=self.device)
        self._count = 0
        self._first = Table(self.device, {"first": (torch.int64, (len(slots),))})

    def tables(self) -> list[Tensor]:
        """Everything on the device that a launch reads."""
        own = [self.norm, self.factors, self._skip, self._sums, self._nonfinite]
        own += [self._table.storage, self.skipped]
        return [*own, self._first.storage] if self.measures else own

    def scaler(self, scaler: Scaler) -> Scaler:
        """What the update takes for GradScaler."""
        return scaler._replace(found_inf=self._skip) if self.skips_nonfinite else scaler

    def collect(self, scaler: Scaler) -> str | None:
        """Give every gradient collected its place in the sums; why kernels do not compile."""
        if not self.measures:
            return None
        # Parameters without a gradient have no place.
        present = np.concatenate([[0], *(bucket.addresses for bucket in self._buckets)])[1:] != 0
        if present.tobytes() != self._present:
            self._present = present.tobytes()
            blocks = np.where(present, self._blocks, 0)[self._order]
            ends = np.cumsum(blocks)
            self._first.host["first"][self._order] = ends - blocks
            self._count = int(blocks.sum())
        if self._compiled or kernel.INTERPRETED.value:
            return None
        why = calls.compile_all(self._calls(scaler), "the norm")
        self._compiled = why is None
        return why

    def measure(self, scaler: Scaler) -> None:
        """Upload the groups' numbers and launch what measures, in the current stream's order."""
        self._table.upload()
        if self.measures:
            for bucket in self._buckets:
                bucket.stage_gradients()
            self._first.upload()
            calls.run(self._calls(scaler))

    def _calls(self, scaler: Scaler) -> list[Call]:
        """The kernels that measure."""
        found, begin = [], 0
        for bucket in self._buckets:
            end = begin + len(bucket.slots)
            first = self._first.device["first"][begin:end]
            found.append(bucket.square_sums(first, self._sums, self._nonfinite))
            begin = end
        found_inf, grad_scale = (
            self._skip if t is None else t.to(self.device, torch.float32, non_blocking=True)
            for t in scaler
        )
        arguments = [self._sums, self._nonfinite, self._count, self.numbers, self.factors]
        arguments += [self._groups, self.norm, self._skip, self.skipped, found_inf, grad_scale]
        constants = {"SCALER": scaler.mode, "SKIPS_NONFINITE": self.skips_nonfinite}
        constants |= options("", FINISH_WARPS)
        return [*found, Call(norm.finish_norm, 1, arguments, constants)]
