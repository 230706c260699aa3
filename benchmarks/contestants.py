"""Who takes part: makers of optimizers by name, contestants built from them, the floor.

A maker turns (class name, parameters, options) into an optimizer. A new library joins the
benchmarks by one entry in MAKERS; tests hand their own table over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.problem import CHECK_STEPS, Problem

Maker = Callable[[str, list[Tensor], Mapping[str, Any]], torch.optim.Optimizer]
Step = Callable[[], object]


def _torch(**flags: bool) -> Maker:
    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = getattr(torch.optim, cls)(params, **options, **flags)
        return optimizer

    return make


def _fastopt(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    import fastopt  # here, so that --list, compare and the plots work without a built package

    optimizer: torch.optim.Optimizer = getattr(fastopt, cls)(params, **options)
    return optimizer


MAKERS: dict[str, Maker] = {
    "fastopt": _fastopt,
    "torch.default": _torch(),
    "torch.foreach": _torch(foreach=True),
    "torch.fused": _torch(fused=True),
}

# On a CPU torch's default is its for-loop, so "best" needs no third contestant.
PEERS: dict[str, tuple[str, ...]] = {
    "fused": ("torch.fused",),
    "default": ("torch.default",),
    "best": ("torch.default", "torch.foreach"),
}


@dataclass(frozen=True)
class Contestant:
    """One optimizer over its own tensors: what is timed, and its error in tolerances."""

    step: Step
    error: float


def build(maker: Maker, problem: Problem) -> Contestant:
    """Build over fresh tensors and check CHECK_STEPS steps against the reference."""
    params = problem.new_params()
    optimizer = maker(problem.algorithm.cls, params, problem.algorithm.options)
    for step in range(CHECK_STEPS):
        problem.set_grads(params, step)
        optimizer.step()
    return Contestant(optimizer.step, problem.error(params))


def floor(problem: Problem, threads: int | None = None) -> Step:
    """The bare stream: one pass, in one parallel region, over the bytes a step moves.

    The stream takes float32 only; what the bytes hold makes no difference to it.
    """
    from fastopt import _core

    floats = problem.elements * problem.dtype.itemsize // 4
    # Filled, not torch.zeros: pages that were never written are all one page of zeros in cache.
    flat = [torch.empty(floats).fill_(0.0) for _ in range(1 + problem.algorithm.updates)]
    team = threads or torch.get_num_threads()
    return lambda: _core.stream(flat[:1], flat[1:], team)
