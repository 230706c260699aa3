"""Torch's operations over many tensors: what it does with a parameter, how many go together."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

# Numbers that go together, for each thread: four buffers of bfloat16 are then 8 MiB, about what
# stays in a core's L2 cache and its share of the L3, and stay allocated from one chunk to the next.
# Muon's orthogonalisation of 60 x 256x256, ms at 2^16, 2^18, 2^20, 2^22 and all: 101, 72, 80, 99
# and 99; of 24 x 512x512 174, 174, 140, 238 and 241 (one thread of a Xeon with AMX). On an
# accelerator, that many for every 16 of its launches' worth: not measured.
CHUNK = 1 << 20
ACCELERATOR_CHUNKS = 16


def how(param: Tensor, state: dict[str, Any] | None = None) -> str:
    """What it does with a parameter, for explain()."""
    return "torch's operations, batched by shape"


def grouped(items: Iterable[tuple[Hashable, T]]) -> Iterator[list[T]]:
    """Those of equal keys, in the order of their first."""
    found: dict[Hashable, list[T]] = {}
    for key, item in items:
        found.setdefault(key, []).append(item)
    yield from found.values()


def chunks(items: list[T], numbers: int, device: torch.device) -> Iterator[list[T]]:
    """Items of so many numbers each, by at most CHUNK numbers a thread; at least one."""
    threads = torch.get_num_threads() if device.type == "cpu" else ACCELERATOR_CHUNKS
    count = max(1, CHUNK * threads // max(numbers, 1))
    for first in range(0, len(items), count):
        yield items[first : first + count]
