"""Which states have never been written, where only the device knows: a flag for each, kept alive.

A first step that the device skips leaves a new momentum buffer, or a new average, unwritten. The
host never hears of it, so `count_steps` clears the flag on the device, and a later plan takes the
flag over.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_flags = WeakTensorKeyDictionary()  # a state -> its flag, a view of some plan's table


def known(state: Tensor | None) -> bool:
    """Whether the device keeps this state's flag."""
    return state is not None and state in _flags


def of(states: Sequence[Tensor | None], unwritten: Sequence[bool], flags: Tensor) -> Tensor:
    """`flags`, one a state, with those that an earlier plan left on the device filled in."""
    for i, (state, new) in enumerate(zip(states, unwritten, strict=True)):
        if known(state):
            flags[i : i + 1].copy_(_flags[state])
        if state is not None and (known(state) or new):
            _flags[state] = flags[i : i + 1]
    return flags
