"""A step on the device: choosing buckets, checking all of them, then launching, in stream order.

Memory and streams. Gradients are read in the order of the current stream, so the caching allocator
may hand their memory out again as soon as they are freed: whoever gets it is ordered behind us.
The tables belong to the plan; where a step runs on another stream than the last one, it waits, on
the device, for that one, and the tables are recorded for the new stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ... import _core
from ...stepping import Changed, Scaler
from . import freshness
from .bucket import Bucket
from .measure import Measure
from .passes import Passes, Switches, measures, switches
from .rules import RULES
from .slots import Memory, Slot, overlap, prepare
from .tables import capturing, constant

Group = dict[str, Any]

# What a CUDA graph still reads at its next replay, also when its plan is gone.
_captured: WeakKeyDictionary[torch.optim.Optimizer, list[Launch]] = WeakKeyDictionary()


def counts_on_device(rule: str, group: Group) -> bool:
    """Whether a group's options keep step counts on the device, as in torch."""
    on_device = any(_core.hyperparameters(rule, group)[1])
    return bool(group.get("capturable") or group.get("fused") or on_device)


def assign_layers(memory: Sequence[tuple[Slot, Sequence[Memory]]]) -> bool:
    """Parameters that share memory are updated one after the other, as torch's loop does; whether
    there are any.
    """
    shared = overlap(itertools.chain.from_iterable(own for _, own in memory))
    for i, (slot, own) in enumerate(memory if shared else ()):
        for before, others in memory[:i]:
            if overlap([*own, *others]):
                slot.layer = max(slot.layer, before.layer + 1)
    return shared


class Launch:
    """The share of an optimizer's step that Triton does: parameters `indices`, over all groups.

    `first` and `begins` hold one byte a parameter: 1 where its states, its average exist but have
    never been written. `groups` are those of the optimizer, or without their passes where torch
    does these. `skipped` gives the device's count of steps left out.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        rule: str,
        indices: Collection[int],
        first: bytes,
        begins: bytes,
        scaler: Scaler,
        groups: Sequence[Group],
        skipped: Callable[[torch.device], Tensor],
    ) -> None:
        self._rule = rule
        self._mode = scaler.mode
        self._unscales = scaler.unscales
        self._slots: list[Slot] = []
        self._left_out: Tensor | None = None  # not 0 where the last step was
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._moved: dict[int, tuple[Tensor, Tensor]] = {}  # steps of the host: each, on the device
        self._names = [tuple(name for name, _ in _core.states(rule, group)) for group in groups]
        self._switches = [switches(group) for group in groups]
        idle = bytearray(len(first))  # those without a gradient so far
        devices: list[torch.device] = []
        index = -1
        for g, group in enumerate(groups):
            for param in group["params"]:
                index += 1
                if index not in indices:
                    continue
                devices.append(param.device)
                if param.grad is None:
                    idle[index] = 1
                    continue
                slot = self._slot(index, g, param, optimizer.state)
                slot.first, slot.begins = bool(first[index]), bool(begins[index])
                self._slots.append(slot)
        # Steps that parameters share are counted on the device, where launches are in order; and
        # gradients that share memory are cleared at the end: another parameter may yet read them.
        memory = [(s, s.memory(self._writes_grad(s.group))) for s in self._slots]
        self._shares = assign_layers(memory)
        self._clears: list[bool] = []
        if self._shares:
            self._clears = [s.CLEARS for s in self._switches]
            self._switches = [s._replace(CLEARS=False) for s in self._switches]
        written = [m[:2] for slot, own in memory for m in slot.but_gradient(own)]
        self._passes: Passes | None = None
        if measures(groups) or any(map(any, self._switches)):
            with self._on(devices[0]):
                self._passes = Passes(groups, devices[0], skipped(devices[0]))
        members: dict[tuple[Any, ...], list[Slot]] = {}
        for slot in self._slots:
            names = slot.names[: len(self._names[slot.group])]
            variant = _core.variants(rule).index(list(names))
            passes = self._switches[slot.group]
            key = (slot.layer, slot.param.device, slot.dtypes, variant, passes)
            members.setdefault(key, []).append(slot)
        self.buckets = [
            self._bucket(variant, slots, groups, passes)
            for (_, _, _, variant, passes), slots in sorted(
                members.items(), key=lambda kv: kv[0][0]
            )
        ]
        table = None
        self._measure: Measure | None = None
        if self._passes is not None:
            table = self._passes.numbers_on_host
            if self._passes.measures:
                self._measure = Measure(self._passes, self.buckets)
        addresses = np.array(written, np.int64).reshape(-1, 2)
        self._containers = _core.Containers(
            rule, list(groups), optimizer.state, bytes(idle), table, addresses
        )

    def _slot(self, index: int, g: int, param: Tensor, state: Mapping[Tensor, Any]) -> Slot:
        kept = state.get(param, {})
        names = self._names[g] + ("ema",) * self._switches[g].AVERAGES
        counted = ["step"] * _core.counts_steps(self._rule)
        for name in (*names, *counted):
            if kept.get(name) is None:
                raise Changed(index, f"it has no state {name!r}")
        states = [kept[name] for name in names]
        step = kept["step"] if counted else None
        slot = Slot(index, g, param, kept, states, names, step, first=False)
        grad = param.grad
        assert grad is not None  # those without one are idle
        prepare(slot, grad, self._writes_grad(g))
        return slot

    def _writes_grad(self, group: int) -> bool:
        return self._unscales or self._switches[group].CLEARS

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
            or any(s.step is not None and s.step.device.type != "cpu" for s in slots)
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
                if slot.step is not None and slot.step.device != device:
                    if id(slot.step) not in self._moved:  # parameters that share it go on doing so
                        moved = constant(slot.step.detach().numpy(), device)
                        self._moved[id(slot.step)] = (slot.step, moved)
                    slot.step = slot.kept["step"] = self._moved[id(slot.step)][1]
        with self._on(device):
            return Bucket(
                self._rule, variant, slots, groups, counts, self._unscales, passes, self._passes
            )

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
                _captured.setdefault(optimizer, []).append(self)
            with self._on(bucket.device):
                bucket.collect(groups, self._seen(scaler))
        changed = self._containers.check_gradients([b.collector for b in self.buckets])
        if changed is not None:
            raise Changed(*changed)
        if self._measure is not None:
            with self._on(self.buckets[0].device):
                if why := self._measure.collect(scaler):
                    raise Changed(-1, why)

    def _seen(self, scaler: Scaler) -> Scaler:
        """What the update sees of GradScaler: the norm's kernel adds steps to be skipped."""
        return scaler if self._passes is None else self._passes.scaler(scaler)

    def written(self) -> list[Tensor]:
        """What the step just checked will write."""
        return [tensor for bucket in self.buckets for tensor in bucket.written()]

    def run(self, scaler: Scaler) -> None:
        """Launch what `check` has collected, on the current stream of every device."""
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
