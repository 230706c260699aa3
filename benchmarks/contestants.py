"""Who takes part: torch's ways and fastopt, contestants built from makers, the floor.

A maker turns (class name, parameters, options) into an optimizer. Other libraries' are in peers.py;
tests hand over tables of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

import fastopt
from benchmarks.method import Step
from benchmarks.problem import CHECK_STEPS, Problem
from fastopt import _core

Maker = Callable[[str, list[Tensor], Mapping[str, Any]], torch.optim.Optimizer]


def of(module: Any, suffix: str = "", **fixed: Any) -> Maker:
    """`module`'s class of torch's name and `suffix`, called with torch's options and `fixed`."""

    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        found = getattr(import_module(module) if isinstance(module, str) else module, cls + suffix)
        optimizer: torch.optim.Optimizer = found(params, **fixed, **options)
        return optimizer

    return make


def _compiled(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Torch's default step under torch.compile; the first check step compiles it."""
    torch.compiler.reset()  # or the ninth optimizer of a process would silently run uncompiled
    optimizer = MAKERS["torch.default"](cls, params, options)
    optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign, assignment]
    return optimizer


def on(isa: str, step: Step) -> Step:
    """`step` on the instruction set `isa`, and nothing else; choosing one takes 0.1 us."""

    def chosen() -> None:
        best = _core.isa()
        _core.select_isa(isa)
        step()
        _core.select_isa(best)

    return chosen


def forced(make: Maker, isa: str) -> Maker:
    """`make`'s optimizer, whose steps alone run on the instruction set `isa`."""

    def maker(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        optimizer = make(cls, params, options)
        optimizer.step = on(isa, optimizer.step)  # type: ignore[method-assign, assignment]
        return optimizer

    return maker


# On a CPU torch's default is its for-loop.
MAKERS: dict[str, Maker] = {
    "fastopt": of(fastopt),
    "torch.default": of(torch.optim),
    "torch.foreach": of(torch.optim, foreach=True),
    "torch.fused": of(torch.optim, fused=True),
    "torch.compiled": _compiled,
}

FLOOR = "floor"


@dataclass(frozen=True)
class Contestant:
    """One optimizer over its own tensors: what is timed, its error in tolerances, its bytes."""

    step: Step
    error: float
    bytes_per_param: float


def build(maker: Maker, problem: Problem, coarse: float | None = None) -> Contestant:
    """Build over fresh tensors and check CHECK_STEPS steps against the reference.

    `coarse` is for states that are quantised: what the result may be off by, as the root mean
    square of its error over that of the update. By default every element must be right.
    """
    params = problem.new_params()
    optimizer = maker(problem.algorithm.cls, params, problem.algorithm.options)
    for step in range(CHECK_STEPS):
        problem.set_grads(params, step)
        optimizer.step()
    if coarse is None:
        error = problem.judge(params, optimizer)
    else:
        error = problem.deviation(params) / coarse
    return Contestant(optimizer.step, error, _bytes(optimizer, problem))


def _bytes(optimizer: torch.optim.Optimizer, problem: Problem) -> float:
    """Bytes per parameter of one pass: the gradient read, parameter and states read and written."""
    memory = {
        leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.dim()  # step counts are not worth the name
        for leaf in _leaves(value)
    }
    states = sum(memory.values()) / problem.elements
    return round(3 * problem.dtype.itemsize + 2 * states, 2)


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor subclass (quantised values, scales) is made of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _leaves(getattr(tensor, name))


def floor(problem: Problem, threads: int | None = None) -> Step:
    """The bare stream: one pass, in one parallel region, over the bytes a step moves.

    Where the gradient must be read before the update, a pass over it alone comes first. The stream
    takes float32 only; what the bytes hold makes no difference to it.
    """
    floats = problem.elements * problem.dtype.itemsize // 4
    # Filled, not torch.zeros: pages that were never written are all one page of zeros in cache.
    flat = [torch.empty(floats).fill_(0.0) for _ in range(1 + problem.algorithm.updates)]
    team = threads or torch.get_num_threads()

    def stream() -> None:
        for _ in range(problem.algorithm.reads - 1):
            _core.stream(flat[:1], [], team)
        _core.stream(flat[:1], flat[1:], team)

    return stream
