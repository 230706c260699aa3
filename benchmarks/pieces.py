"""A fastopt optimizer taken apart: its step, and the parts of that step as calls of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import fastopt
from benchmarks.problem import ALGORITHMS, Problem
from benchmarks.shapes import Shape
from fastopt import _core
from fastopt.optim._fused import FusedStep


def optimizer_of(problem: Problem) -> tuple[FusedStep, list[Tensor]]:
    """A fastopt optimizer over fresh parameters with gradients, and those parameters."""
    params = problem.new_params()
    made: FusedStep = getattr(fastopt, problem.algorithm.cls)(params, **problem.algorithm.options)
    return made, params


class Pieces:
    """An optimizer that has stepped, over one work; `threads` are torch's unless told."""

    def __init__(self, shapes: Sequence[Shape], algorithm: str, threads: int | None = None) -> None:
        self.problem = Problem(shapes, ALGORITHMS[algorithm], torch.float32)
        self.optimizer, self.params = optimizer_of(self.problem)
        self.optimizer.step()
        self.grads = [param.grad for param in self.params if param.grad is not None]
        states = [self.optimizer.state[param].values() for param in self.params]
        self.states = [tensor for of_param in states for tensor in of_param]
        # In the order of the step: which tensors are still in the caches depends on it.
        self.tensors = [
            tensor
            for param, grad, of_param in zip(self.params, self.grads, states, strict=True)
            for tensor in (param, grad, *of_param)
        ]
        self.threads = threads or torch.get_num_threads()

    def drop_gradients(self) -> Pieces:
        """Take the gradients away: a step then checks its containers and updates nothing."""
        self.optimizer.zero_grad(set_to_none=True)
        return self

    def step(self) -> None:
        """The whole step, as a training loop calls it."""
        self.optimizer.step()

    def engine(self, before: Callable[[], None] | None = None) -> None:
        """The step without the Python around it; `before` is called between checks and writes."""
        plan = self.optimizer._record.plan
        assert plan is not None
        assert plan._core is not None
        groups, state = self.optimizer.param_groups, self.optimizer.state
        refused = plan._core.step(groups, state, self.threads, None, before)
        assert refused is None

    def read_grads(self) -> None:
        """Ask every parameter for .grad."""
        _core.read_grads(self.params)

    def read_params(self) -> None:
        """Read every parameter through DLPack."""
        _core.read_tensors(self.params)

    def read_gradients(self) -> None:
        """Read every gradient through DLPack."""
        _core.read_tensors(self.grads)

    def read_states(self) -> None:
        """Read every state and step tensor through DLPack."""
        _core.read_tensors(self.states)

    def read_all(self) -> None:
        """Read every tensor through DLPack, in the step's order."""
        _core.read_tensors(self.tensors)

    def bump_versions(self) -> None:
        """Tell autograd that every parameter was written to."""
        torch.autograd.graph.increment_version(self.params)


def region(threads: int) -> Callable[[], None]:
    """A call that opens a parallel region over next to nothing."""
    tiny = [torch.zeros(64), torch.zeros(64)]
    return lambda: _core.stream(tiny[:1], tiny[1:], threads)
