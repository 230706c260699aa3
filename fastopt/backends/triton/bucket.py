"""The tensors of one launch: tuning constants, then the bucket's tables, check and launch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _core
from . import Scaler, freshness, kernel
from .rules import RULES
from .slots import Changed, Slot
from .tables import Table, constant


class Tile(NamedTuple):
    """How a program works: warps, bytes a thread takes of every stream, registers it may have."""

    warps: int
    thread_bytes: int
    registers: int | None = None  # None: as many as ptxas likes; it spills a few to run more blocks


# By the size of an element. Not timed: chosen by the codegen check. Two 128-bit accesses a thread
# and stream halve the table look-ups, a chain of three dependent loads, that one would pay; four
# need registers for 32 lanes of 16 bits a stream. 4 warps are Triton's default, with exceptions:
# in float32 on sm_90, AMSGrad then spills 8 bytes a thread; 8 warps of 16-bit elements are too
# coarse for sm_100 (76 % of the bytes it needs under way). In float64 ptxas spills up to 16 bytes
# in Adam and RMSprop on sm_80 unless it is told that it may have the registers.
TILES = {2: Tile(4, 32), 4: Tile(8, 32), 8: Tile(4, 32, registers=128)}
# Tensors a program of count_steps looks after; it is all latency, so any value near this will do.
COUNT_BLOCK = 128
COUNT_WARPS = 4

ELEMENTS = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
REALS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def lanes(itemsize: int, warp_size: int) -> dict[str, int]:
    """The kernel's constants for elements of a size: BLOCK a program, VECTOR, SINGLES."""
    tile = TILES[itemsize]
    threads = tile.warps * warp_size
    return {
        "BLOCK": tile.thread_bytes // itemsize * threads,
        "VECTOR": 16 // itemsize,
        "SINGLES": threads,
    }


def number_at(tensor: Tensor) -> int:
    """A number's address, with its lowest bit set where it is float64."""
    return tensor.data_ptr() | (tensor.dtype == torch.float64)


def target(device: torch.device) -> tuple[str, int]:
    """Triton's backend for a device, and its threads a warp: 32, on some AMD devices 64."""
    if device.type != "cuda":
        return "interpreter", 32
    found = triton.runtime.driver.active.get_current_target()
    return found.backend, int(found.warp_size)


def options(backend: str, warps: int, registers: int | None = None) -> dict[str, Any]:
    """Of a launch: no multiplication and addition is fused but where the rule says so."""
    chosen: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": False}
    if registers is not None and backend == "cuda":  # Triton has no such option for AMD devices
        chosen["maxnreg"] = registers
    return chosen


class Bucket:
    """Parameters on one device, of one dtype and variant, whatever groups they are in."""

    def __init__(
        self,
        rule: str,
        variant: int,
        slots: Sequence[Slot],
        groups: Sequence[dict[str, Any]],
        counts: bool,
        unscales: bool,
    ) -> None:
        param = slots[0].param
        self.rule, self.variant, self.slots = rule, variant, slots
        self.counts = counts  # steps are counted, and scalars computed, on the device
        self.device = param.device
        self.dtype = REALS.get(param.dtype, param.dtype)
        self._compute = torch.float64 if self.dtype == torch.float64 else torch.float32
        self._staged = [s for s in slots if s.stages or s.grad_stage is not None]
        self._compiled = False
        self._place(2 if param.dtype in REALS else 1)
        scalars = 1 + len(_core.scalar_names(rule))
        sections: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        sections = {"grads": (torch.int64, (len(slots),))}
        if counts:
            wide = (len(groups), 1 + len(_core.hyperparameters(rule, groups[slots[0].group])[0]))
            sections |= {"hyper": (torch.float64, wide), "hyper_at": (torch.int64, wide)}
            self._table = Table(self.device, sections)
            shape = (len(slots), scalars)
            self._scalars = torch.empty(shape, dtype=self._compute, device=self.device)
            self._groups = constant(np.array([s.group for s in slots], np.int32), self.device)
            steps = [0 if s.step is None else number_at(s.step) for s in slots]
            self._steps = constant(np.array(steps, np.int64), self.device)
            first = np.array([s.first for s in slots], np.int32)
            self._fresh = freshness.of(slots, constant(first, self.device))
        else:
            sections["scalars"] = (self._compute, (len(slots), scalars))
            self._table = Table(self.device, sections)
            self._scalars = self._table.device["scalars"]
        rows = [slot.row() for slot in slots]
        self._collector = _core.Collector(rule, rows, unscales, **self._table.host)

    def _place(self, reals: int) -> None:
        """The tables that never change: which block is whose, and every tensor's row."""
        self._backend, warp_size = target(self.device)
        self._lanes = lanes(self.dtype.itemsize, warp_size)
        size = self._lanes["BLOCK"]
        numbers = np.array([s.param.numel() * reals for s in self.slots], np.int64)
        blocks = -(-numbers // size)
        ends = np.cumsum(blocks)
        self._programs = int(ends[-1])
        within = np.arange(self._programs) - np.repeat(ends - blocks, blocks)
        numbered = np.repeat(np.arange(len(numbers)), blocks) << 32 | within
        rows = [[n, *slot.addresses] for n, slot in zip(numbers, self.slots, strict=True)]
        self._blocks = constant(numbered.astype(np.int64), self.device)
        self._rows = constant(np.array(rows, np.int64), self.device)
        self._nothing = torch.zeros((), device=self.device)  # stands in where there is no scaler

    def tables(self) -> list[Tensor]:
        """Everything on the device that a launch reads and the bucket owns."""
        own = [self._blocks, self._rows, self._nothing, self._table.storage, self._scalars]
        if self.counts:
            own += [self._groups, self._steps, self._fresh]
        own += [stage for slot in self.slots for _, stage in slot.stages]
        return own + [s.grad_stage for s in self.slots if s.grad_stage is not None]

    def collect(self, groups: list[dict[str, Any]], scaler: Scaler) -> None:
        """Fill the host tables for one step; raise Changed if anything is not as planned."""
        changed = self._collector.collect(groups)
        if changed is not None:
            at, reason = changed
            raise Changed(self.slots[at].index if at >= 0 else -1, reason)
        self._compile(scaler)

    def params(self) -> list[Tensor]:
        """The parameters that the step just collected will write."""
        return self._collector.params()

    def launch(self, scaler: Scaler) -> None:
        """Stage, upload, count, update, copy back, all in the order of the current stream."""
        staged = [(s, s.param.grad) for s in self._staged if s.param.grad is not None]
        for slot, grad in staged:
            for live, stage in slot.stages:
                stage.copy_(live)
            if slot.grad_stage is not None:
                slot.grad_stage.copy_(grad)
        self._table.upload()
        # The interpreter computes with NumPy, which warns of what IEEE 754 defines.
        with np.errstate(all="ignore") if kernel.INTERPRETED.value else nullcontext():
            for function, programs, arguments, constants in self._calls(scaler):
                if programs:
                    function[(programs,)](*arguments, **constants)
        for slot, grad in staged:
            for live, stage in slot.stages:
                live.copy_(stage)
            if slot.grad_stage is not None and scaler.unscales:
                grad.copy_(slot.grad_stage)
        self._collector.launched()

    def _calls(self, scaler: Scaler) -> list[tuple[Any, int, list[Any], dict[str, Any]]]:
        """The kernels of a step: function, programs, arguments; constants with options."""
        device, rule, mode = self._table.device, RULES[self.rule], scaler.mode
        tile = TILES[self.dtype.itemsize]
        found_inf, grad_scale = (
            self._nothing if t is None else t.to(self.device, torch.float32, non_blocking=True)
            for t in scaler
        )
        calls: list[tuple[Any, int, list[Any], dict[str, Any]]] = []
        if self.counts:
            tensors = [self._steps, self._groups, self._fresh, device["hyper"], device["hyper_at"]]
            constants = {
                "SCALARS_OF": rule.scalars,
                "HYPER": device["hyper"].shape[1] - 1,
                "COUNTS": _core.counts_steps(self.rule),
                "SCALER": mode,
                "BLOCK": COUNT_BLOCK,
            }
            count = len(self.slots)
            arguments = [count, device["grads"], *tensors, self._scalars, found_inf]
            programs = -(-count // COUNT_BLOCK)
            constants |= options(self._backend, COUNT_WARPS)
            calls.append((kernel.count_steps, programs, arguments, constants))
        constants = {
            "RULE": rule.update,
            "VARIANT": self.variant,
            "STATES": len(self.slots[0].states),
            "SCALARS": self._scalars.shape[1] - 1,
            "DTYPE": ELEMENTS[self.dtype],
            "COMPUTE": ELEMENTS[self._compute],
            "SCALER": mode,
            **self._lanes,
            **options(self._backend, tile.warps, tile.registers),
        }
        tensors = [self._blocks, self._rows, device["grads"], self._scalars, found_inf, grad_scale]
        calls.append((kernel.multi_tensor, self._programs, tensors, constants))
        return calls

    def _compile(self, scaler: Scaler) -> None:
        """Compile and load before anything is written; done once."""
        if self._compiled or kernel.INTERPRETED.value:
            return
        for function, _, arguments, constants in self._calls(scaler):
            try:
                # Asking for its launcher is what loads it: too large for this device shows here.
                function.warmup(*arguments, grid=(1,), **constants).run  # noqa: B018
            except Exception as error:
                cause: BaseException = error
                while cause.__cause__ is not None:  # the innermost of the functions inlined
                    cause = cause.__cause__
                why = str(cause).strip().splitlines()[-1:]
                gpu = triton.runtime.driver.active.get_current_target()
                raise Changed(
                    self.slots[0].index,
                    f"Triton {triton.__version__} cannot compile {function.__name__} of the rule "
                    f"{self.rule!r} in {self.dtype} for {gpu.backend} {gpu.arch} "
                    f"({type(cause).__name__}: {' '.join(why)}); set FASTOPT_BACKEND=torch to take "
                    "torch's own step",
                ) from error
        self._compiled = True
