"""The tensors of one launch: tuning constants, then the bucket's tables, check and launch."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _core
from . import Scaler, freshness, kernel
from .rules import RULES
from .scalars import HostScalars, hyperparameters, number_at, without_tensors
from .slots import Changed, Slot, collect
from .tables import Table, constant

# Not measured: 4 warps are Triton's own default, and small enough that blocks of a streaming kernel
# fill a multiprocessor at any register count the codegen check allows.
WARPS = 4
# Not measured: two 128-bit accesses a thread and stream. One pays the table look-ups, a chain of
# three dependent loads, twice as often; four need registers for 32 bfloat16 lanes a stream.
THREAD_BYTES = 32
# Tensors a program of count_steps looks after; it is all latency, so any value near this will do.
COUNT_BLOCK = 128

ELEMENTS = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
}
REALS = {torch.complex64: torch.float32, torch.complex128: torch.float64}


def lanes(itemsize: int, warp_size: int) -> dict[str, int]:
    """The kernel's constants for elements of a size: BLOCK a program, VECTOR, SINGLES."""
    threads = WARPS * warp_size
    return {
        "BLOCK": THREAD_BYTES // itemsize * threads,
        "VECTOR": 16 // itemsize,
        "SINGLES": threads,
    }


def warp_size(device: torch.device) -> int:
    """Threads of a warp: 32, on some AMD devices 64."""
    if device.type != "cuda":
        return 32
    return int(triton.runtime.driver.active.get_current_target().warp_size)


class Bucket:
    """Parameters on one device, of one dtype and variant, whatever groups they are in."""

    def __init__(
        self,
        rule: str,
        variant: int,
        slots: Sequence[Slot],
        groups: Sequence[dict[str, Any]],
        counts: bool,
    ) -> None:
        param = slots[0].param
        self.rule, self.variant, self.slots = rule, variant, slots
        self.counts = counts  # steps are counted, and scalars computed, on the device
        self.device = param.device
        self.dtype = REALS.get(param.dtype, param.dtype)
        self._compute = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.updated: list[Slot] = []
        self._compiled: set[int] = set()
        self._place(2 if param.dtype in REALS else 1)
        hyper = len(hyperparameters(rule, groups[slots[0].group])[0])
        scalars = 1 + len(_core.scalars(rule, without_tensors(groups[slots[0].group]), 1.0))
        sections: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        sections = {"grads": (torch.int64, (len(slots),))}
        if counts:
            wide = (len(groups), hyper)
            sections |= {"hyper": (torch.float64, wide), "hyper_at": (torch.int64, wide)}
            self._table = Table(self.device, sections)
            shape = (len(slots), scalars)
            self._scalars = torch.empty(shape, dtype=self._compute, device=self.device)
            self._used = sorted({s.group for s in slots})
            self._groups = constant(np.array([s.group for s in slots], np.int32), self.device)
            steps = [0 if s.step is None else number_at(s.step) for s in slots]
            self._steps = constant(np.array(steps, np.int64), self.device)
            first = np.array([s.first for s in slots], np.int32)
            self._fresh = freshness.of(slots, constant(first, self.device))
        else:
            sections["scalars"] = (self._compute, (len(slots), scalars))
            self._table = Table(self.device, sections)
            self._scalars = self._table.device["scalars"]
            self._host = HostScalars(rule, slots)

    def _place(self, reals: int) -> None:
        """The tables that never change: which block is whose, and every tensor's row."""
        self._lanes = lanes(self.dtype.itemsize, warp_size(self.device))
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

    def collect(self, groups: Sequence[dict[str, Any]], scaler: Scaler) -> None:
        """Fill the host tables for one step; raise Changed if anything is not as planned."""
        host = self._table.host
        collect(self.slots, host["grads"])
        self._live = host["grads"] != 0
        self.updated = [s for s, live in zip(self.slots, self._live, strict=True) if live]
        if self.counts:
            for g in self._used:
                host["hyper"][g], host["hyper_at"][g] = hyperparameters(self.rule, groups[g])
        else:
            self._host.fill(groups, host["scalars"])
        self._compile(scaler)

    def launch(self, scaler: Scaler) -> None:
        """Stage, upload, count, update, copy back, all in the order of the current stream."""
        for slot in self.updated:
            for live, stage in slot.stages:
                stage.copy_(live)
            grad = slot.param.grad
            if slot.grad_stage is not None and grad is not None:
                slot.grad_stage.copy_(grad)
        self._table.upload()
        # The interpreter computes with NumPy, which warns of what IEEE 754 defines.
        with np.errstate(all="ignore") if kernel.INTERPRETED.value else nullcontext():
            for function, programs, arguments, options in self._calls(scaler):
                if programs:
                    function[(programs,)](*arguments, **options)
        for slot in self.updated:
            for live, stage in slot.stages:
                live.copy_(stage)
            grad = slot.param.grad
            if slot.grad_stage is not None and grad is not None and scaler.mode == 2:
                grad.copy_(slot.grad_stage)
        if not self.counts:
            self._host.count(self._live)

    def _calls(self, scaler: Scaler) -> list[tuple[Any, int, list[Any], dict[str, Any]]]:
        """The kernels of a step: function, programs, arguments, constants and options."""
        device, rule, mode = self._table.device, RULES[self.rule], scaler.mode
        found_inf, grad_scale = (
            self._nothing if t is None else t.to(self.device, torch.float32, non_blocking=True)
            for t in scaler
        )
        options = {"num_warps": WARPS, "enable_fp_fusion": False}
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
            calls.append((kernel.count_steps, programs, arguments, {**constants, **options}))
        constants = {
            "RULE": rule.update,
            "VARIANT": self.variant,
            "STATES": len(rule.states[self.variant]),
            "SCALARS": self._scalars.shape[1] - 1,
            "DTYPE": ELEMENTS[self.dtype],
            "COMPUTE": ELEMENTS[self._compute],
            "SCALER": mode,
            **self._lanes,
        }
        tensors = [self._blocks, self._rows, device["grads"], self._scalars, found_inf, grad_scale]
        calls.append((kernel.multi_tensor, self._programs, tensors, {**constants, **options}))
        return calls

    def _compile(self, scaler: Scaler) -> None:
        """Compile before anything is written; from the second step on this does nothing."""
        if scaler.mode in self._compiled or kernel.INTERPRETED.value:
            return
        for function, _, arguments, options in self._calls(scaler):
            try:
                function.warmup(*arguments, grid=(1,), **options)
            except Exception as error:
                raise Changed(
                    self.slots[0].index,
                    f"Triton {triton.__version__} cannot compile {function.__name__} for "
                    f"{self.dtype} on {torch.cuda.get_device_name(self.device)} "
                    f"({type(error).__name__}: {error}); set FASTOPT_BACKEND=torch to take torch's "
                    "own step",
                ) from error
        self._compiled.add(scaler.mode)
