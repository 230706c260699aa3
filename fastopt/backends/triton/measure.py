"""What is measured before the update, over all buckets of a launch: every gradient's place in the
sums, then the kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...stepping import Scaler
from . import calls, formats, norm
from .bucket import Bucket
from .calls import Call, options
from .passes import Passes
from .tables import Table

# Of finish_norm, one program: two sums a thread and row.
FINISH_WARPS = 16


class Measure:
    """The gradients' norm and whether one is not finite, into the tables of `passes`."""

    def __init__(self, passes: Passes, buckets: Sequence[Bucket]) -> None:
        self._passes, self._buckets = passes, buckets
        slots = [slot for bucket in buckets for slot in bucket.slots]
        blocks = np.concatenate([[0], *(bucket.norm_blocks for bucket in buckets)])[1:]
        self._blocks = blocks.astype(np.int64)
        self._order = np.argsort([slot.index for slot in slots], kind="stable")
        total, device = int(self._blocks.sum()), passes.device
        self._sums = torch.zeros(total, dtype=torch.float64, device=device)
        self._nonfinite = torch.zeros(total, dtype=torch.int32, device=device)
        self._count = 0
        self._first = Table(device, {"first": (torch.int64, (len(slots),))})
        self._present = b""
        self._compiled = False

    def tables(self) -> list[Tensor]:
        """Everything on the device that its launches read."""
        return [self._sums, self._nonfinite, self._first.storage]

    def collect(self, scaler: Scaler) -> str | None:
        """Give every gradient collected its place in the sums; why kernels do not compile."""
        # Parameters without a gradient have no place.
        present = np.concatenate([[0], *(bucket.addresses for bucket in self._buckets)])[1:] != 0
        if present.tobytes() != self._present:
            self._present = present.tobytes()
            blocks = np.where(present, self._blocks, 0)[self._order]
            ends = np.cumsum(blocks)
            self._first.host["first"][self._order] = ends - blocks
            self._count = int(blocks.sum())
        if self._compiled or formats.INTERPRETED.value:
            return None
        why = calls.compile_all(self._calls(scaler), "the norm")
        self._compiled = why is None
        return why

    def launch(self, scaler: Scaler) -> None:
        """Measure, in the current stream's order."""
        for bucket in self._buckets:
            bucket.stage_gradients()
        self._first.upload()
        calls.run(self._calls(scaler))

    def _calls(self, scaler: Scaler) -> list[Call]:
        """The kernels that measure."""
        found, begin, passes = [], 0, self._passes
        for bucket in self._buckets:
            end = begin + len(bucket.slots)
            first = self._first.device["first"][begin:end]
            found.append(bucket.square_sums(first, self._sums, self._nonfinite))
            begin = end
        found_inf, grad_scale = (
            passes.skip if t is None else t.to(passes.device, torch.float32, non_blocking=True)
            for t in scaler
        )
        arguments = [self._sums, self._nonfinite, self._count, passes.numbers, passes.factors]
        arguments += [len(passes.factors), passes.norm, passes.skip, passes.skipped]
        constants = {"SCALER": scaler.mode, "SKIPS_NONFINITE": passes.skips_nonfinite}
        constants |= options("", FINISH_WARPS)
        return [*found, Call(norm.finish_norm, 1, [*arguments, found_inf, grad_scale], constants)]
