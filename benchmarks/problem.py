"""What every contestant of a row is given and must reach: algorithms, then values and tolerances.

Values repeat with a period, so that the float64 reference is computed once over one period: an
optimizer of this package works element by element, hence element i of any tensor must come out as
element i of the period. That makes checking 124M parameters cost one comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.shapes import Shape, numel


@dataclass(frozen=True)
class Algorithm:
    """An optimizer class with the options it is benchmarked with, and the tensors it updates."""

    cls: str
    options: Mapping[str, Any]
    updates: int  # tensors of the parameter's size read and written: itself and its states
    reads: int = 1  # of the gradient; 2 where its norm must be known before the update

    def bytes_per_param(self, dtype: torch.dtype) -> int:
        """Bytes moved per parameter: the gradient read, every update read and written."""
        return dtype.itemsize * (self.reads + 2 * self.updates)


ALGORITHMS = {
    "Adam": Algorithm("Adam", {"lr": 1e-3}, 3),
    "Adam-amsgrad": Algorithm("Adam", {"lr": 1e-3, "amsgrad": True}, 4),
    # 0.1 is what GPT-2 is trained with; the default 0.01 moves a weight by less than fp32 checks.
    "AdamW": Algorithm("AdamW", {"lr": 1e-3, "weight_decay": 0.1}, 3),
    "RMSprop": Algorithm("RMSprop", {"lr": 1e-3}, 2),
    # Its first updates are ten times those of plain RMSprop's: v starts at 0.
    "RMSprop-momentum": Algorithm("RMSprop", {"lr": 1e-4, "momentum": 0.9}, 3),
    "RMSprop-centered": Algorithm("RMSprop", {"lr": 1e-3, "centered": True}, 3),
    "SGD-momentum": Algorithm("SGD", {"lr": 0.1, "momentum": 0.9}, 2),
    "SGD-nesterov": Algorithm("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 2),
    "SGD-plain": Algorithm("SGD", {"lr": 0.1}, 1),
}

DTYPES = {
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
}

# Prime, so that no vector width, cache line, page or thread's share divides it and an element
# that got its neighbour's update cannot match by accident; 1M values stay inside L2/L3.
PERIOD = 1_000_003

# Three steps show a wrong moment, bias correction or step count; each has gradients of its own,
# because under one constant gradient Adam's update is sign(g) whatever its betas are.
CHECK_STEPS = 3
GRADIENT_SHIFT = 7919

# (rtol, atol) on the parameters after CHECK_STEPS. torch's own loops come out at 0.4 of it or less
# in fp32 and fp64 and 0.9 in bf16 (torch 2.13); the updates themselves are 1e-3 and more.
TOLERANCES = {
    torch.float64: (1e-14, 1e-16),
    torch.float32: (1e-6, 1e-8),
    torch.bfloat16: (2**-6, 2e-4),
}


@dataclass
class Problem:
    """Tensors of `shapes` to be updated by `algorithm`, with values that repeat every `period`."""

    shapes: Sequence[Shape]
    algorithm: Algorithm
    dtype: torch.dtype
    device: str = "cpu"
    period: int = field(init=False)
    params: Tensor = field(init=False)
    grads: Tensor = field(init=False)
    expected: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.period = min(PERIOD, numel(self.shapes))
        source = torch.Generator().manual_seed(0)
        # 0.02 is GPT-2's initial spread: small weights leave updates of lr visible in the check.
        where = (self.device, self.dtype)
        self.params = (torch.randn(self.period, generator=source) * 0.02).to(*where)
        self.grads = (torch.randn(self.period, generator=source) * 0.01).to(*where)
        self.expected = self._reference()

    @property
    def elements(self) -> int:
        """Parameters in all tensors together."""
        return numel(self.shapes)

    def _reference(self) -> Tensor:
        weight = self.params.to(torch.float64, copy=True).requires_grad_()
        make = getattr(torch.optim, self.algorithm.cls)
        optimizer = make([weight], **self.algorithm.options, foreach=False)
        for step in range(CHECK_STEPS):
            weight.grad = self.gradient(step).double()
            optimizer.step()
        return weight.detach()

    def gradient(self, step: int) -> Tensor:
        """One period of the gradient of check step `step`."""
        return self.grads.roll(-step * GRADIENT_SHIFT)

    def new_params(self) -> list[Tensor]:
        """Fresh parameters with fresh gradients, the values of step 0."""
        params = [torch.empty(shape, dtype=self.dtype, device=self.device) for shape in self.shapes]
        for param in params:
            param.grad = torch.empty_like(param)
        self._fill(params, self.params)
        self.set_grads(params, step=0)
        return [param.requires_grad_() for param in params]

    def set_grads(self, params: Sequence[Tensor], step: int) -> None:
        """Give every parameter the gradient of check step `step`, in place."""
        grads = [param.grad for param in params if param.grad is not None]
        self._fill(grads, self.gradient(step))

    def _fill(self, tensors: Sequence[Tensor], values: Tensor) -> None:
        for chunk, start in self._chunks(tensors):
            chunk.copy_(values[start : start + chunk.numel()])

    def _chunks(self, tensors: Sequence[Tensor]) -> list[tuple[Tensor, int]]:
        """Flat views covering `tensors` in order, each with where it starts in the period."""
        chunks, start = [], 0
        for tensor in tensors:
            rest = tensor.detach().view(-1)
            while rest.numel():
                chunk = rest[: self.period - start]
                chunks.append((chunk, start))
                start = (start + chunk.numel()) % self.period
                rest = rest[chunk.numel() :]
        return chunks

    def deviation(self, params: Sequence[Tensor]) -> float:
        """Root mean square of the error of `params` after CHECK_STEPS, over that of the update."""
        squares = torch.zeros((), dtype=torch.float64, device=self.device)
        for chunk, start in self._chunks(params):
            error = chunk.double() - self.expected[start : start + chunk.numel()]
            squares += error.square().sum()
        update = self.expected - self.params.double()
        return float((squares / self.elements / update.square().mean()).sqrt())

    def judge(self, params: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> float:
        """Worst error of all results after CHECK_STEPS, in tolerances: at most 1 is right."""
        return self.error(params, self.expected)

    def error(self, params: Sequence[Tensor], expected: Tensor) -> float:
        """Worst error of tensors that should hold `expected`, one period, in tolerances."""
        rtol, atol = TOLERANCES[self.dtype]
        allowed = atol + rtol * expected.abs()
        worst = torch.zeros((), dtype=torch.float64, device=self.device)
        for chunk, start in self._chunks(params):
            part = slice(start, start + chunk.numel())
            error = (chunk.double() - expected[part]).abs() / allowed[part]
            worst = torch.maximum(worst, error.max())  # maximum, unlike max(), keeps NaN
        return float(worst)
