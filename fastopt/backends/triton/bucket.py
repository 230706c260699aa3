"""The tensors of one launch: the bucket, its tables, its kernels, compiling and launch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from torch import Tensor

from ... import _core
from ...stepping import Scaler
from . import calls, formats, freshness, kernel, norm, tiles
from .calls import Call, options
from .passes import Passes, Switches
from .rules import RULES
from .slots import Slot
from .tables import Table, constant

ELEMENTS = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.uint8: tl.uint8,
}


def compute_type(dtypes: Collection[torch.dtype]) -> torch.dtype:
    """What streams of these dtypes are computed in."""
    return torch.float64 if torch.float64 in dtypes else torch.float32


def number_at(tensor: Tensor) -> int:
    """A number's address, with its lowest bit set where it is float64."""
    return tensor.data_ptr() | (tensor.dtype == torch.float64)


class Bucket:
    """Parameters on one device whose streams have the same dtypes; of one variant and passes,
    whatever groups they are in.
    """

    def __init__(
        self,
        rule: str,
        variant: int,
        slots: Sequence[Slot],
        groups: Sequence[dict[str, Any]],
        counts: bool,
        unscales: bool,
        switches: Switches,
        passes: Passes | None,
    ) -> None:
        param = slots[0].param
        self.rule, self.variant, self.slots = rule, variant, slots
        self.counts = counts  # steps are counted, and scalars computed, on the device
        self.device = param.device
        self._switches, self._passes = switches, passes
        # Of parameter, gradient, states and average; complex numbers are pairs of real ones.
        self.dtypes = [dtype.to_real() for dtype in slots[0].dtypes]
        self._stored = slots[0].stored
        self._itemsizes = [dtype.itemsize for dtype in self.dtypes]
        self._compute = compute_type(self.dtypes)
        # What norms complete is computed in double.
        self._scalar = self._compute if RULES[rule].measured is None else torch.float64
        self._staged = [s for s in slots if s.stages or s.grad_stage is not None]
        self._writes_grads = unscales or switches.CLEARS
        self._compiled = False
        self._place(2 if param.dtype.is_complex else 1)
        self._groups = constant(np.array([s.group for s in slots], np.int32), self.device)
        scalars = 1 + len(_core.scalar_names(rule))
        sections: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        sections = {"grads": (torch.int64, (len(slots),))}
        self._unwritten: Tensor | None = None  # averages, where the device counts
        self._begins: Tensor | None = None
        # Of compact formats' noise: its keys, and what the device makes them of where it counts.
        self._keys: Tensor | None = None
        self._places: Tensor | None = None
        compact = self._stored is not None
        keys = (torch.int64, (len(slots), formats.WORDS.value))
        if counts:
            wide = (len(groups), 1 + len(_core.hyperparameters(rule, groups[slots[0].group])[0]))
            sections |= {"hyper": (torch.float64, wide), "hyper_at": (torch.int64, wide)}
            if compact:
                sections["seeds"] = (torch.int64, (len(groups),))
                self._places = constant(np.array([s.index for s in slots], np.int64), self.device)
                self._keys = torch.empty(keys[1], dtype=keys[0], device=self.device)
            self._table = Table(self.device, sections)
            shape = (len(slots), scalars)
            self._scalars = torch.empty(shape, dtype=self._scalar, device=self.device)
            carried = [[number_at(number) for number in slot.carried] for slot in slots]
            self._carried = constant(np.array(carried, np.int64), self.device)
            states = [s.states[0] if s.states else None for s in slots]
            self._fresh = self._flags(states, [s.first for s in slots])
            if switches.AVERAGES:
                averages = [s.states[-1] for s in slots]
                self._unwritten = self._flags(averages, [s.begins for s in slots])
                self._begins = torch.zeros_like(self._unwritten)
        else:
            sections["scalars"] = (self._scalar, (len(slots), scalars))
            if compact:
                sections["keys"] = keys
                if switches.AVERAGES:
                    sections["begins"] = (torch.int32, (len(slots),))
            self._table = Table(self.device, sections)
            self._scalars = self._table.device["scalars"]
            self._keys = self._table.device.get("keys")
            self._begins = self._table.device.get("begins")
        self.rows = _core.Rows(rule, [slot.row() for slot in slots], **self._table.host)

    def _flags(self, states: Sequence[Tensor | None], unwritten: Sequence[bool]) -> Tensor:
        flags = constant(np.array(unwritten, np.int32), self.device)
        return freshness.of(states, unwritten, flags)

    def _place(self, reals: int) -> None:
        """The tables that never change: which block is whose, and every tensor's row."""
        self._target = tiles.target(self.device)
        warp_size = self._target.warp_size
        self._lanes = tiles.lanes(self._itemsizes, warp_size, self._stored is not None)
        numbers = np.array([s.param.numel() * reals for s in self.slots], np.int64)
        self._numbers = numbers
        self._blocks, self._ends = self._numbered(self._lanes["BLOCK"])
        rows = [[n, *slot.addresses] for n, slot in zip(numbers, self.slots, strict=True)]
        self._rows = constant(np.array(rows, np.int64), self.device)
        self._nothing = torch.zeros((), device=self.device)  # stands in where there is no scaler
        self.norm_blocks = -(-numbers // norm.NORM_BLOCK.value)
        self._norm_lanes = tiles.norm_lanes(self._itemsizes[1], warp_size)
        self._sums: Tensor | None = None
        self._tracked = np.zeros(len(self.slots), bool)  # who had a gradient in the last step
        if self._switches.TRACKS:
            shape = (int(self._ends[-1]), 3)
            self._sums = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self._norms: Tensor | None = None  # of a rule that waits for them, then where tensors end
        self._norm_ends: Tensor | None = None
        if RULES[self.rule].measured is not None:
            shape = (int(self._ends[-1]), 4)
            self._norms = torch.zeros(shape, dtype=torch.float64, device=self.device)
            self._norm_ends = constant(self._ends, self.device)
        self._norm_programs: Tensor | None = None
        if self._passes is not None and self._passes.measures:
            size = norm.NORM_BLOCK.value * self._norm_lanes["COUNT"]
            self._norm_programs, _ = self._numbered(size)

    def _numbered(self, size: int) -> tuple[Tensor, NDArray[np.int64]]:
        """A program for every `size` numbers: its tensor << 32 | its place; where tensors end."""
        blocks = -(-self._numbers // size)
        ends = np.cumsum(blocks)
        within = np.arange(int(ends[-1])) - np.repeat(ends - blocks, blocks)
        numbered = np.repeat(np.arange(len(blocks)), blocks) << 32 | within
        return constant(numbered.astype(np.int64), self.device), ends

    def tables(self) -> list[Tensor]:
        """Everything on the device that a launch reads and the bucket owns."""
        own = [self._blocks, self._rows, self._nothing, self._table.storage, self._scalars]
        own += [self._groups]
        if self.counts:
            own += [self._carried, self._fresh]
        own += [table for table in self._maybe() if table is not None]
        own += [stage for slot in self.slots for _, stage in slot.stages]
        return own + [s.grad_stage for s in self.slots if s.grad_stage is not None]

    def _maybe(self) -> list[Tensor | None]:
        sums = [self._sums, self._norm_programs, self._norms, self._norm_ends]
        return [self._unwritten, self._begins, self._keys, self._places, *sums]

    @property
    def addresses(self) -> NDArray[np.int64]:
        """Of the gradients of the step collected; 0 where there is none."""
        return self._table.host["grads"]

    def upload(self) -> None:
        """Send the tables in the order of the current stream."""
        self._table.upload()

    def _present(self, slots: Sequence[Slot]) -> list[tuple[Slot, Tensor]]:
        return [(slot, slot.param.grad) for slot in slots if slot.param.grad is not None]

    def stage_gradients(self) -> None:
        """Copy those that do not lie as their parameters into the layout that kernels read."""
        for slot, grad in self._present(self._staged):
            if slot.grad_stage is not None:
                slot.grad_stage.copy_(grad)

    def launch(self, scaler: Scaler) -> None:
        """Stage, count, update, copy back, all in the order of the current stream."""
        self.stage_gradients()
        staged = self._present(self._staged)
        for slot, _ in staged:
            for live, stage in slot.stages:
                stage.copy_(live)
        calls.run(self._calls(scaler))
        for slot, grad in staged:
            for live, stage in slot.stages:
                live.copy_(stage)
            if slot.grad_stage is not None and self._writes_grads:
                grad.copy_(slot.grad_stage)
        if self._sums is not None:
            self._tracked = self.addresses != 0

    def _calls(self, scaler: Scaler) -> list[Call]:
        """The kernels of a step."""
        device, rule, mode = self._table.device, RULES[self.rule], scaler.mode
        found_inf, grad_scale = (
            self._nothing if t is None else t.to(self.device, torch.float32, non_blocking=True)
            for t in scaler
        )
        found: list[Call] = []
        if self.counts:
            tensors = [
                self._carried,
                self._groups,
                self._fresh,
                device["hyper"],
                device["hyper_at"],
            ]
            constants = {
                "SCALARS_OF": rule.scalars,
                "HYPER": device["hyper"].shape[1] - 1,
                "CARRIED": self._carried.shape[1],
                "SCALER": mode,
                "BLOCK": tiles.COUNT_BLOCK,
            }
            count = len(self.slots)
            arguments: list[Any] = [count, device["grads"], *tensors, self._scalars, found_inf]
            arguments += [self._unwritten, self._begins]
            arguments += [self._places, device.get("seeds"), self._keys]
            programs = -(-count // tiles.COUNT_BLOCK)
            constants |= options(self._target.backend, tiles.COUNT_WARPS)
            found.append(Call(kernel.count_steps, programs, arguments, constants))
        constants = {
            "RULE": rule.update,
            "VARIANT": self.variant,
            "STATES": len(self.slots[0].states) - self._switches.AVERAGES,
            "SCALARS": self._scalars.shape[1] - 1,
            "DTYPES": tuple(ELEMENTS[dtype] for dtype in self.dtypes),
            "STORED": self._stored,
            "COMPUTE": ELEMENTS[self._compute],
            "SCALER": mode,
            **self._switches._asdict(),
            "MEASURES": False,
            **self._lanes,
            **self._shape(self._switches.TRACKS),
        }
        arguments = [self._blocks, self._rows, device["grads"], self._scalars, self._keys]
        arguments += [found_inf, grad_scale]
        tables: list[Any] = [None, None, None]
        if self._passes is not None and (self._switches.PREPARES or self._switches.AVERAGES):
            tables = [self._groups, self._passes.numbers, self._passes.factors]
        arguments += [*tables, self._begins, self._sums]
        if self._norms is not None:
            found += self._measuring(arguments, constants)
        found.append(Call(kernel.multi_tensor, len(self._blocks), arguments, constants))
        return found

    def _shape(self, sums_up: bool) -> dict[str, Any]:
        compact = self._stored is not None
        low = self.slots[0].seconds[0] if compact else None
        low_bytes = 0 if low is None else low.element_size()
        return tiles.shape(self._itemsizes, low_bytes, sums_up, compact, self._target)

    def _measuring(self, arguments: list[Any], constants: dict[str, Any]) -> list[Call]:
        """What comes before the update whose arguments and constants these are."""
        rule = RULES[self.rule]
        measuring = {"RULE": rule.measured, "CLEARS": False, "TRACKS": False, "MEASURES": True}
        measuring |= self._shape(sums_up=True)
        completing = {
            "COMPLETED": rule.completed,
            "SCALARS": constants["SCALARS"],
            "BLOCK": tiles.COMPLETE_BLOCK,
            **options(self._target.backend, 1),
        }
        tables = [self._norm_ends, self._norms, self._scalars]
        programs = len(self._blocks)
        return [
            Call(
                kernel.multi_tensor,
                programs,
                [*arguments[:-1], self._norms],
                constants | measuring,
            ),
            Call(kernel.complete_scalars, len(self.slots), tables, completing),
        ]

    def square_sums(self, first_sums: Tensor, sums: Tensor, nonfinite: Tensor) -> Call:
        """The kernel that sums the squares of the gradients' blocks."""
        assert self._norm_programs is not None
        arguments = [self._norm_programs, self._rows, self._table.device["grads"]]
        arguments += [first_sums, sums, nonfinite]
        dtype = self.dtypes[1]
        constants = {
            "WIDTH": self._rows.shape[1],
            "DTYPE": ELEMENTS[dtype],
            "COMPUTE": ELEMENTS[compute_type([dtype])],
            **self._norm_lanes,
            **options(self._target.backend, tiles.NORM_WARPS),
        }
        return Call(norm.square_sums, len(self._norm_programs), arguments, constants)

    def stats(self) -> list[tuple[int, float, float, float]]:
        """Parameter and norms of gradient, update and weight in the last step; waits for it."""
        if self._sums is None:
            return []
        sums = self._sums.cpu().numpy()
        begins = [0, *self._ends[:-1]]
        return [
            (slot.index, *np.sqrt(sums[begin:end].sum(axis=0)).tolist())
            for slot, begin, end, there in zip(
                self.slots, begins, self._ends, self._tracked, strict=True
            )
            if there and begin != end
        ]

    def compile(self, scaler: Scaler) -> str | None:
        """Compile and load before anything is written, once; why that fails."""
        if self._compiled or formats.INTERPRETED.value:
            return None
        of = f"the rule {self.rule!r} in {' and '.join(map(str, dict.fromkeys(self.dtypes)))}"
        why = calls.compile_all(self._calls(scaler), of)
        self._compiled = why is None
        return why
