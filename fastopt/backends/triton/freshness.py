"""Which states have never been written, where only the device knows: a flag for each, kept alive.

A first step that GradScaler skips leaves a new momentum buffer unwritten. The host never hears of
it, so `count_steps` clears the flag on the device, and a later plan takes the flag over.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .slots import Slot

_flags = WeakTensorKeyDictionary()  # a slot's first state -> its flag, a view of some plan's table


def known(slot: Slot) -> bool:
    """Whether the device keeps this slot's flag."""
    return bool(slot.states) and slot.states[0] in _flags


def of(slots: Sequence[Slot], flags: Tensor) -> Tensor:
    """`flags`, one a slot, with those that an earlier plan left on the device filled in."""
    for i, slot in enumerate(slots):
        if known(slot):
            flags[i : i + 1].copy_(_flags[slot.states[0]])
        if known(slot) or slot.first:
            _flags[slot.states[0]] = flags[i : i + 1]
    return flags
