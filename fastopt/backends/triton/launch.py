"""A step on the device: choosing buckets, checking all of them, then launching, in stream order.

Memory and streams. Gradients are read in the order of the current stream, so the caching allocator
may hand their memory out again as soon as they are freed: whoever gets it is ordered behind us.
The tables belong to the plan; where a step runs on another stream than the last one, it waits, on
the device, for that one, and the tables are recorded for the new stream.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ... import _core
from . import Scaler, freshness
from .bucket import Bucket
from .rules import RULES
from .scalars import without_tensors
from .slots import Changed, Slot, extent, prepare
from .tables import capturing, constant

Group = dict[str, Any]

# Buckets that a CUDA graph still reads at its next replay, also when their plan is gone.
_captured: WeakKeyDictionary[torch.optim.Optimizer, list[Bucket]] = WeakKeyDictionary()


def counts_on_device(group: Group) -> bool:
    """Whether a group's options keep step counts on the device, as in torch."""
    tensors = [v for v in (group["lr"], *group.get("betas", ())) if isinstance(v, Tensor)]
    elsewhere = any(t.device.type != "cpu" for t in tensors)
    return bool(group.get("capturable") or group.get("fused") or elsewhere)


def assign_layers(slots: Sequence[Slot]) -> None:
    """Parameters that share memory are updated one after the other, as torch's loop does."""
    end, shared = 0, False
    for begin, stop in sorted(extent(s.param) for s in slots):
        shared |= begin < end and begin != stop
        end = max(end, stop)
    for i, slot in enumerate(slots if shared else ()):
        begin, stop = extent(slot.param)
        for before in slots[:i]:
            other, end = extent(before.param)
            if begin < end and other < stop:
                slot.layer = max(slot.layer, before.layer + 1)


class Launch:
    """The share of an optimizer's step that Triton does: parameters `indices`, over all groups.

    `first` holds one byte a parameter, 1 where its states exist but have never been written.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: str,
        indices: Collection[int],
        first: bytes,
        scaler: Scaler,
    ) -> None:
        self._rule = rule
        self._mode = scaler.mode
        self._slots: list[Slot] = []
        self._idle: list[tuple[int, Tensor]] = []  # those without a gradient so far
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        groups = optimizer.param_groups
        self._members = [list(group["params"]) for group in groups]
        self._names = [self._state_names(group) for group in groups]
        index = -1
        for g, group in enumerate(groups):
            for param in group["params"]:
                index += 1
                if index in indices and param.grad is None:
                    self._idle.append((index, param))
                elif index in indices:
                    self._slots.append(self._slot(index, g, param, optimizer.state, first))
        assign_layers(self._slots)
        members: dict[tuple[Any, ...], list[Slot]] = {}
        for slot in self._slots:
            variant = RULES[rule].states.index(slot.names)
            key = (slot.layer, slot.param.device, slot.param.dtype, variant)
            members.setdefault(key, []).append(slot)
        self.buckets = [
            self._bucket(variant, slots, groups)
            for (_, _, _, variant), slots in sorted(members.items(), key=lambda kv: kv[0][0])
        ]

    def _state_names(self, group: Group) -> tuple[str, ...]:
        return tuple(_core.state_names(self._rule, without_tensors(group)))

    def _slot(
        self, index: int, g: int, param: Tensor, state: Mapping[Tensor, Any], first: bytes
    ) -> Slot:
        kept = state.get(param, {})
        names = self._names[g]
        for name in (*names, *["step"] * _core.counts_steps(self._rule)):
            if not isinstance(kept.get(name), Tensor):
                raise Changed(index, f"it has no state {name!r}")
        step = kept["step"] if _core.counts_steps(self._rule) else None
        if step is not None and (
            step.numel() != 1 or step.dtype not in (torch.float32, torch.float64)
        ):
            raise Changed(
                index,
                f"its state 'step' has shape {tuple(step.shape)} and dtype {step.dtype}; it must "
                "be one float32 or float64 number",
            )
        states = [kept[name] for name in names]
        slot = Slot(index, g, param, kept, states, names, step, bool(first[index]))
        prepare(slot)
        return slot

    def _bucket(self, variant: int, slots: list[Slot], groups: Sequence[Group]) -> Bucket:
        device = slots[0].param.device
        counts = (
            self._mode > 0
            or any(counts_on_device(groups[g]) for g in {s.group for s in slots})
            or any(s.step is not None and s.step.device.type != "cpu" for s in slots)
            or any(freshness.known(s) for s in slots)
        )
        if counts and RULES[self._rule].scalars is None:
            raise Changed(
                slots[0].index,
                f"the rule {self._rule!r} has no scalars on the device, which GradScaler, "
                "capturable=True and a learning rate on the device need; set FASTOPT_BACKEND=torch",
            )
        if counts:
            for slot in slots:
                if slot.step is not None and slot.step.device != device:
                    slot.step = slot.kept["step"] = constant(slot.step.detach().numpy(), device)
        with self._on(device):
            return Bucket(self._rule, variant, slots, groups, counts)

    @staticmethod
    def _on(device: torch.device) -> Any:
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def check(self, optimizer: torch.optim.Optimizer, scaler: Scaler) -> None:
        """Collect one step; raise Changed where anything is not as planned. Nothing is written."""
        groups, state = optimizer.param_groups, optimizer.state
        if len(groups) != len(self._members) or (scaler.mode > 0) != (self._mode > 0):
            raise Changed(-1, "the param groups or the scaler have changed")
        for group, members, names in zip(groups, self._members, self._names, strict=True):
            params = group["params"]
            if len(params) != len(members) or not all(map(operator.is_, params, members)):
                raise Changed(-1, "the parameters of a group have changed")
            if self._state_names(group) != names:
                raise Changed(-1, "the states that a group asks for have changed")
        for slot in self._slots:
            if state.get(slot.param) is not slot.kept and (slot.names or slot.step is not None):
                raise Changed(slot.index, "its state has changed")
        for index, param in self._idle:
            if param.grad is not None:
                raise Changed(index, "it has a gradient for the first time")
        for bucket in self.buckets:
            if capturing(bucket.device):
                if not bucket.counts and _core.counts_steps(self._rule):
                    raise Changed(
                        bucket.slots[0].index,
                        "a CUDA graph captures its step, but capturable is False in its param "
                        "group: construct the optimizer with capturable=True",
                    )
                _captured.setdefault(optimizer, []).append(bucket)
            with self._on(bucket.device):
                bucket.collect(groups, scaler)

    def params(self) -> list[Tensor]:
        """The parameters that the step just checked will write."""
        return [slot.param for bucket in self.buckets for slot in bucket.updated]

    def run(self, scaler: Scaler) -> None:
        """Launch what `check` has collected, on the current stream of every device."""
        with torch.no_grad():
            for bucket in self.buckets:
                with self._on(bucket.device):
                    if bucket.device.type == "cuda":
                        self._follow(bucket.device)
                    bucket.launch(scaler)

    def _follow(self, device: torch.device) -> None:
        """Order this step behind the last one, where that ran on another stream."""
        stream = torch.cuda.current_stream(device)
        last = self._streams.setdefault(device, stream)
        if stream == last or capturing(device):  # a capture begins with everything done before
            return
        stream.wait_stream(last)
        self._streams[device] = stream
        for bucket in self.buckets:
            if bucket.device == device:
                for table in bucket.tables():
                    table.record_stream(stream)
