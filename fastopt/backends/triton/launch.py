"""A step on the device: choosing buckets, checking all of them, then launching, in stream order.

Memory and streams. Gradients are read in the order of the current stream, so the caching allocator
may hand their memory out again as soon as they are freed: whoever gets it is ordered behind us.
The tables belong to the plan; where a step runs on another stream than the last one, it waits, on
the device, for that one, and the tables are recorded for the new stream.
"""

from __future__ import annotations

import itertools
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
from .slots import Changed, Slot, extent, prepare
from .tables import capturing, constant

Group = dict[str, Any]

# Buckets that a CUDA graph still reads at its next replay, also when their plan is gone.
_captured: WeakKeyDictionary[torch.optim.Optimizer, list[Bucket]] = WeakKeyDictionary()


def counts_on_device(rule: str, group: Group) -> bool:
    """Whether a group's options keep step counts on the device, as in torch."""
    on_device = any(_core.hyperparameters(rule, group)[1])
    return bool(group.get("capturable") or group.get("fused") or on_device)


def assign_layers(slots: Sequence[Slot], unscales: bool) -> None:
    """Parameters that share memory are updated one after the other, as torch's loop does.

    So are those that share a gradient, where it is unscaled in place.
    """
    written = [[extent(s.param)] for s in slots]
    if unscales:
        for extents, slot in zip(written, slots, strict=True):
            extents += [] if slot.param.grad is None else [extent(slot.param.grad)]
    end, shared = 0, False
    for begin, stop in sorted(itertools.chain.from_iterable(written)):
        shared |= begin < end and begin != stop
        end = max(end, stop)
    for i, slot in enumerate(slots if shared else ()):
        for k, before in enumerate(slots[:i]):
            pairs = itertools.product(written[i], written[k])
            if any(a < d and c < b for (a, b), (c, d) in pairs):
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
        self._unscales = scaler.unscales
        self._slots: list[Slot] = []
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        groups = optimizer.param_groups
        self._names = [tuple(_core.state_names(rule, group)) for group in groups]
        idle = bytearray(len(first))  # those without a gradient so far
        index = -1
        for g, group in enumerate(groups):
            for param in group["params"]:
                index += 1
                if index in indices and param.grad is None:
                    idle[index] = 1
                elif index in indices:
                    self._slots.append(self._slot(index, g, param, optimizer.state, first))
        assign_layers(self._slots, unscales=scaler.unscales)
        members: dict[tuple[Any, ...], list[Slot]] = {}
        for slot in self._slots:
            variant = _core.variants(rule).index(list(slot.names))
            key = (slot.layer, slot.param.device, slot.param.dtype, variant)
            members.setdefault(key, []).append(slot)
        self.buckets = [
            self._bucket(variant, slots, groups)
            for (_, _, _, variant), slots in sorted(members.items(), key=lambda kv: kv[0][0])
        ]
        self._containers = _core.Containers(rule, groups, optimizer.state, bytes(idle))

    def _slot(
        self, index: int, g: int, param: Tensor, state: Mapping[Tensor, Any], first: bytes
    ) -> Slot:
        kept = state.get(param, {})
        names = self._names[g]
        counted = ["step"] * _core.counts_steps(self._rule)
        for name in (*names, *counted):
            if kept.get(name) is None:
                raise Changed(index, f"it has no state {name!r}")
        states = [kept[name] for name in names]
        step = kept["step"] if counted else None
        slot = Slot(index, g, param, kept, states, names, step, bool(first[index]))
        grad = param.grad
        assert grad is not None  # those without one are idle
        prepare(slot, grad, self._unscales)
        return slot

    def _bucket(self, variant: int, slots: list[Slot], groups: Sequence[Group]) -> Bucket:
        device = slots[0].param.device
        counts = (
            self._mode > 0
            or any(counts_on_device(self._rule, groups[g]) for g in {s.group for s in slots})
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
            return Bucket(self._rule, variant, slots, groups, counts, self._unscales)

    @staticmethod
    def _on(device: torch.device) -> Any:
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def check(self, optimizer: torch.optim.Optimizer, scaler: Scaler) -> None:
        """Collect one step; raise Changed where anything is not as planned. Nothing is written."""
        groups = optimizer.param_groups
        if scaler.mode != self._mode:
            raise Changed(-1, "GradScaler has come or gone")
        changed = self._containers.check(groups, optimizer.state)
        if changed is not None:
            raise Changed(*changed)
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
        return [param for bucket in self.buckets for param in bucket.params()]

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
