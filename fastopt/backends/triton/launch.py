"""A step on the device: choosing buckets, compiling for them, then launching, in stream order.

Memory and streams. Gradients are read in the order of the current stream, so the caching allocator
may hand their memory out again as soon as they are freed: whoever gets it is ordered behind us.
The tables belong to the plan; where a step runs on another stream than the last one, it waits, on
the device, for that one, and the tables are recorded for the new stream.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ... import _core
from ...precision import CODES, LOW, SCALE
from ...stepping import Changed, Outcome, Scaler, Stepping
from . import freshness
from .bucket import Bucket
from .measure import Measure
from .passes import Passes, Switches, measures, switches
from .rules import RULES
from .slots import Slot, Stored, prepare
from .tables import capturing, constant

Group = dict[str, Any]

# What a CUDA graph still reads at its next replay, also when its plan is gone.
_captured: WeakKeyDictionary[torch.optim.Optimizer, list[Launch]] = WeakKeyDictionary()


def counts_on_device(rule: str, group: Group) -> bool:
    """Whether a group's options keep step counts on the device, as in torch."""
    on_device = any(_core.hyperparameters(rule, group)[1])
    return bool(group.get("capturable") or group.get("fused") or on_device)


class Launch:
    """The share of an optimizer's step that Triton does: parameters `indices`, over all groups.

    `groups` are those of the optimizer, or without their passes where torch does these. `found` has
    an entry for each parameter that has a gradient: how many others must be updated before it, and
    how its streams are stored. `first` and `begins` hold one byte a parameter: 1 where its states,
    its average exist but have never been written.
    """

    def __init__(
        self,
        optimizer: Stepping,
        groups: Sequence[Group],
        indices: Collection[int],
        found: Mapping[int, tuple[int, Stored]],
        first: bytes,
        begins: bytes,
        scaler: Scaler,
    ) -> None:
        self._rule = rule = optimizer._rule
        self._mode = scaler.mode
        self._unscales = scaler.unscales
        self._slots: list[Slot] = []
        self._left_out: Tensor | None = None  # not 0 where the last step was
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._moved: dict[int, tuple[Tensor, Tensor]] = {}  # numbers of the host, on the device
        self._names = [tuple(name for name, _ in _core.states(rule, group)) for group in groups]
        self._switches = [switches(group) for group in groups]
        devices: list[torch.device] = []
        for index, (g, param) in enumerate(
            (g, p) for g, of in enumerate(groups) for p in of["params"]
        ):
            if index not in indices:
                continue
            devices.append(param.device)
            if index in found:
                layer, stored = found[index]
                kept = optimizer.state.get(param, {})
                slot = self._slot(index, g, param, kept, groups[g], stored)
                slot.first = bool(first[index])
                slot.begins = bool(begins[index]) and self._switches[g].AVERAGES
                slot.layer = layer
                self._slots.append(slot)
        # Numbers that parameters share are advanced on the device, where launches are in order; and
        # gradients that share memory are cleared at the end: another parameter may yet read them.
        self._shares = any(layer for layer, _ in found.values())
        self._clears: list[bool] = []
        if self._shares:
            self._clears = [s.CLEARS for s in self._switches]
            self._switches = [s._replace(CLEARS=False) for s in self._switches]
        self._passes: Passes | None = None
        if measures(groups) or any(map(any, self._switches)):
            with self._on(devices[0]):
                self._passes = Passes(groups, devices[0], optimizer._skips_on(devices[0]))
        members: dict[tuple[Any, ...], list[Slot]] = {}
        for slot in self._slots:
            names = slot.names[: len(self._names[slot.group])]
            variant = [[*states] for states in _core.variants(rule)].index([*names])
            passes = self._switches[slot.group]
            streams = (slot.dtypes, slot.stored, len(slot.carried))
            key = (slot.layer, slot.param.device, streams, variant, passes)
            members.setdefault(key, []).append(slot)
        self.buckets = [
            self._bucket(variant, slots, groups, passes)
            for (_, _, _, variant, passes), slots in sorted(
                members.items(), key=lambda kv: kv[0][0]
            )
        ]
        self._measure: Measure | None = None
        if self._passes is not None and self._passes.measures:
            self._measure = Measure(self._passes, self.buckets)

    @property
    def rows(self) -> list[_core.Rows]:
        """What the compiled core collects for it."""
        return [bucket.rows for bucket in self.buckets]

    @property
    def numbers_of_passes(self) -> NDArray[np.float64] | None:
        """Likewise, of the groups."""
        return None if self._passes is None else self._passes.numbers_on_host

    def _slot(
        self,
        index: int,
        g: int,
        param: Tensor,
        kept: dict[str, Any],
        group: Group,
        stored: Stored,
    ) -> Slot:
        names = self._names[g] + ("ema",) * self._switches[g].AVERAGES
        states = [kept[name] if name in kept else kept[name + CODES] for name in names]
        carried = [kept[name] for name, _ in _core.carried(self._rule, group)]
        seconds = [LOW, *(name + SCALE for name in names)]
        planes = [] if stored is None else [kept.get(name) for name in seconds]
        slot = Slot(index, g, param, kept, states, names, stored, planes, carried, first=False)
        assert param.grad is not None  # or it has no layer
        prepare(slot, param.grad)
        return slot

    def _bucket(
        self, variant: int, slots: list[Slot], groups: Sequence[Group], passes: Switches
    ) -> Bucket:
        device = slots[0].param.device
        skips = self._passes is not None and self._passes.skips_nonfinite
        counts = (
            self._mode > 0
            or skips
            or self._shares
            or any(counts_on_device(self._rule, groups[g]) for g in {s.group for s in slots})
            or any(number.device.type != "cpu" for slot in slots for number in slot.carried)
            or any(map(freshness.known, (s for slot in slots for s in slot.states)))
        )
        if counts and RULES[self._rule].scalars is None:
            raise Changed(
                slots[0].index,
                f"the rule {self._rule!r} has no scalars on the device, which GradScaler, "
                "skip_nonfinite, capturable=True and a learning rate on the device need; set "
                "FASTOPT_BACKEND=torch",
            )
        if counts:
            for slot in slots:
                for k, (name, _) in enumerate(_core.carried(self._rule, groups[slot.group])):
                    slot.carried[k] = slot.kept[name] = self._on_device(slot.carried[k], device)
        with self._on(device):
            return Bucket(
                self._rule, variant, slots, groups, counts, self._unscales, passes, self._passes
            )

    def _on_device(self, number: Tensor, device: torch.device) -> Tensor:
        if number.device == device:
            return number
        if id(number) not in self._moved:  # parameters that share it go on doing so
            self._moved[id(number)] = number, constant(number.detach().numpy(), device)
        return self._moved[id(number)][1]

    @staticmethod
    def _on(device: torch.device) -> Any:
        return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

    def check(self, optimizer: Stepping, scaler: Scaler) -> Outcome:
        """Whether what was collected can be launched, kernels compiled; nothing is written."""
        if scaler.mode != self._mode:
            return -1, "GradScaler has come or gone"
        for bucket in self.buckets:
            index = bucket.slots[0].index
            if capturing(bucket.device):
                if not bucket.counts and bucket.slots[0].carried:
                    return index, (
                        "a CUDA graph captures its step, but capturable is False in its param "
                        "group: construct the optimizer with capturable=True"
                    )
                _captured.setdefault(optimizer, []).append(self)
            with self._on(bucket.device):
                if why := bucket.compile(self._seen(scaler)):
                    return index, why
        if self._measure is not None:
            with self._on(self.buckets[0].device):
                if why := self._measure.collect(scaler):
                    return -1, why
        return None

    def _seen(self, scaler: Scaler) -> Scaler:
        """What the update sees of GradScaler: the norm's kernel adds steps to be skipped."""
        return scaler if self._passes is None else self._passes.scaler(scaler)

    def run(self, scaler: Scaler) -> None:
        """Launch what has been collected, on the current stream of every device."""
        self._left_out = self._seen(scaler).found_inf
        with torch.no_grad():
            for bucket in self.buckets:
                with self._on(bucket.device):
                    if bucket.device.type == "cuda":
                        self._follow(bucket.device)
                    bucket.upload()
            if self._passes is not None:
                with self._on(self._passes.device):
                    self._passes.upload()
                    if self._measure is not None:
                        self._measure.launch(scaler)
            for bucket in self.buckets:
                with self._on(bucket.device):
                    bucket.launch(self._seen(scaler))
            for slot in self._slots if self._clears else ():
                if self._clears[slot.group] and slot.param.grad is not None:
                    slot.param.grad.zero_()
            for slot in self._slots:
                # As in torch.optim.swa_utils; a compact one begins in the kernel, as the weight
                # with its correction.
                if slot.begins and slot.stored is None:
                    slot.states[-1].copy_(slot.param)
                slot.begins = False

    @property
    def norm(self) -> Tensor | None:
        """The norm of the last step's gradients, on the device; None if it is not asked for."""
        passes = self._passes
        return passes.norm if passes is not None and passes.measures else None

    def stats(self) -> list[tuple[int, float, float, float]]:
        """Parameter and norms of gradient, update and weight in the last step; waits for it. None
        where that was left out.
        """
        if self._left_out is not None and self._left_out.item():
            return []
        return sorted(row for bucket in self.buckets for row in bucket.stats())

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
        for shared in (self._passes, self._measure):
            for table in () if shared is None else shared.tables():
                table.record_stream(stream)
