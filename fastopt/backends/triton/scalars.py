"""Numbers from the host: hyperparameters, then step counts on the CPU and rows of scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import _core
from .slots import Slot


def sign(group: dict[str, Any]) -> float:
    """What a group's gradients are multiplied by."""
    return -1.0 if group["maximize"] else 1.0


def number_at(tensor: Tensor) -> int:
    """A number's address, with its lowest bit set where it is float64."""
    return tensor.data_ptr() | (tensor.dtype == torch.float64)


def without_tensors(group: dict[str, Any]) -> dict[str, Any]:
    """The group with a number for every tensor on a device, which nobody may read."""
    stands_in: dict[str, Any] = {
        key: 0.5
        for key, value in group.items()
        if isinstance(value, Tensor) and value.device.type != "cpu"
    }
    if any(isinstance(beta, Tensor) for beta in group.get("betas", ())):
        stands_in["betas"] = (0.5, 0.5)
    return {**group, **stands_in}


def hyperparameters(rule: str, group: dict[str, Any]) -> tuple[list[float], list[int]]:
    """[sign, hyperparameters...] and, of those that are tensors on a device, their addresses."""
    values, addresses = [sign(group)], [0]
    for key in _core.hyper_names(rule):
        value = group[key]
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, Tensor) and part.device.type != "cpu":
                values.append(0.0)
                addresses.append(number_at(part))
            else:
                values.append(part.item() if isinstance(part, Tensor) else float(part))
                addresses.append(0)
    return values, addresses


class HostScalars:
    """The scalars of a bucket whose step tensors are on the CPU, read and written through NumPy."""

    def __init__(self, rule: str, slots: Sequence[Slot]) -> None:
        self._rule = rule
        self._group_of = np.array([s.group for s in slots], np.int32)
        self._first = np.array([s.first for s in slots], np.int32)
        self._like = np.zeros(len(slots), np.int64)  # a tensor with the same scalars
        self._numbers = [s.step.detach().reshape(()).numpy() for s in slots if s.step is not None]
        self._wide = np.array([n.itemsize == 8 for n in self._numbers], bool)
        self._next = np.zeros(len(slots))

    def fill(self, groups: Sequence[dict[str, Any]], out: NDArray[Any]) -> None:
        """One row a tensor, for the step to come; computed once for all that have the same."""
        if self._numbers:
            now = np.array([number[()] for number in self._numbers], np.float64)
            # Counted in its own type, as torch does: float32 stops at 2**24.
            self._next = np.where(self._wide, now + 1, (now + 1).astype(np.float32))
        keys, like = np.stack([self._group_of, self._next, self._first]), self._like
        if not np.array_equal(keys, keys[:, like]):
            seen: dict[tuple[float, ...], int] = {}
            same = [seen.setdefault(tuple(key), i) for i, key in enumerate(keys.T.tolist())]
            self._like = like = np.array(same, np.int64)
        for i in np.unique(like):
            group, step, first = groups[self._group_of[i]], self._next[i], self._first[i]
            scalars = _core.scalars(self._rule, group, float(step), bool(first))
            out[i] = [sign(group), *scalars.values()]
        out[:] = out[like]

    def count(self, live: NDArray[np.bool_]) -> None:
        """Count the step of every tensor that was updated."""
        for number, value, counts in zip(self._numbers, self._next, live, strict=False):
            if counts:
                number[()] = value
        self._first[live] = 0
