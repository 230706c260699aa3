"""Small tables that the device reads: pinned buffers, then a table of sections with its host twin.

A table's sections are written on the host at every step; `upload` sends what differs from what the
device has. It never waits: a pinned buffer is written again only once the device has read it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Sections start at multiples of this, so that every element type is aligned in them.
ALIGNMENT = 16


def capturing(device: torch.device) -> bool:
    """Whether the current stream is being captured into a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def constant(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """`values` on the device, sent without waiting for it."""
    tensor = torch.from_numpy(values)
    if device.type != "cuda":
        return tensor.clone()
    return tensor.pin_memory().to(device, non_blocking=True)


class PinnedRing:
    """Pinned buffers of one size. Grows while the device lags behind rather than wait for it."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._sent: deque[tuple[Tensor, torch.cuda.Event]] = deque()
        # A graph copies from its buffer at every replay, and pinning is forbidden while capturing:
        # one buffer is set aside for the next capture.
        self._spare: Tensor | None = self._new()
        self._captured: list[Tensor] = []

    def _new(self) -> Tensor:
        return torch.empty(self._size, dtype=torch.uint8, pin_memory=True)

    def send(self, target: Tensor, values: NDArray[np.uint8]) -> None:
        """Copy `values` to `target` in the order of the current stream."""
        if capturing(self._device):
            if self._spare is None:
                raise RuntimeError(
                    "this optimizer was captured into a CUDA graph twice in a row; run one step "
                    "without capture in between. No parameter was changed"
                )
            buffer, self._spare = self._spare, None
            self._captured.append(buffer)
            self._copy(target, buffer, values)
            return
        if self._spare is None:
            self._spare = self._new()
        if self._sent and self._sent[0][1].query():  # type: ignore[no-untyped-call]
            buffer, event = self._sent.popleft()
        else:
            buffer, event = self._new(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._copy(target, buffer, values)
        event.record()
        self._sent.append((buffer, event))

    @staticmethod
    def _copy(target: Tensor, buffer: Tensor, values: NDArray[np.uint8]) -> None:
        part = buffer[: len(values)]
        part.numpy()[:] = values
        target.copy_(part, non_blocking=True)


class Table:
    """Sections in one allocation: `host[name]` to write, `device[name]` for kernels to read."""

    def __init__(
        self, device: torch.device, sections: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    ) -> None:
        ends, total = [], 0
        for dtype, shape in sections.values():
            begin = total
            total += dtype.itemsize * int(np.prod(shape))
            ends.append((begin, total))
            total = -(-total // ALIGNMENT) * ALIGNMENT
        on_host = torch.zeros(total, dtype=torch.uint8)
        storage = torch.empty(total, dtype=torch.uint8, device=device)
        self.host: dict[str, NDArray[Any]] = {}
        self.device: dict[str, Tensor] = {}
        for (name, (dtype, shape)), (begin, end) in zip(sections.items(), ends, strict=True):
            self.host[name] = on_host[begin:end].view(dtype).view(shape).numpy()
            self.device[name] = storage[begin:end].view(dtype).view(shape)
        self._ends = ends
        self._bytes = on_host.numpy()
        self.storage = storage
        self._known: NDArray[np.uint8] | None = None  # what the device has or will have
        self._replayed = False  # whether a graph may write the device's copy too
        self._ring = PinnedRing(total, device) if device.type == "cuda" else None

    def upload(self) -> None:
        """Send the span of sections that have changed.

        A graph must bring along all that it was captured with, since eager steps between two
        replays write other addresses into the same table; and replays do the same to them.
        """
        known, spans = self._known, self._ends
        self._replayed |= capturing(self.storage.device)
        if known is not None and not self._replayed:
            spans = [
                (begin, end)
                for begin, end in spans
                if not np.array_equal(self._bytes[begin:end], known[begin:end])
            ]
            if not spans:
                return
        begin, end = spans[0][0], spans[-1][1]
        target, values = self.storage[begin:end], self._bytes[begin:end]
        if self._ring is None:
            target.copy_(torch.from_numpy(values))
        else:
            self._ring.send(target, values)
        if known is None:
            self._known = self._bytes.copy()
        else:
            known[begin:end] = values
