"""A step's tensors: which path each parameter takes and why, new states, then the step itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _core

if TYPE_CHECKING:
    from .optim._fused import FusedStep

BACKENDS = ("auto", "cpu", "torch")
CPU_DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.complex64,
    torch.complex128,
)
PLAIN_TYPES = (Tensor, torch.nn.Parameter)


@dataclass(frozen=True)
class Route:
    """The path of one parameter: `backend` is "cpu" or "torch"; `reason` says why.

    `lasting` is False where the reason lies in this step's gradient and not in the parameter.
    """

    backend: str
    reason: str
    lasting: bool = True


def backend_setting() -> str:
    """FASTOPT_BACKEND: auto (default), cpu or torch."""
    setting = os.environ.get("FASTOPT_BACKEND", "auto")
    if setting not in BACKENDS:
        raise ValueError(
            f"FASTOPT_BACKEND is {setting!r}; allowed: {', '.join(BACKENDS)}. "
            "Unset it to let fastopt choose."
        )
    return setting


def parameters(optimizer: FusedStep) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """(group, parameter), over all groups in order: the order of every index in messages."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield group, param


def name_of(optimizer: FusedStep, index: int) -> str:
    """The index-th parameter, by its name where the optimizer was given names."""
    for i, group in enumerate(optimizer.param_groups):
        if index < len(group["params"]):
            place = f"param_groups[{i}]['params'][{index}]"
            names = group.get("param_names")
            return f"{names[index]!r} ({place})" if names else place
        index -= len(group["params"])
    raise IndexError(index)


def route(optimizer: FusedStep, group: dict[str, Any], param: Tensor, index: int) -> Route:
    """Decide the path of one parameter; raise where no path can take it."""
    setting = backend_setting()
    if setting == "torch":
        return Route("torch", "FASTOPT_BACKEND=torch")
    if group.get("differentiable"):
        return Route("torch", "differentiable=True")
    if group.get("capturable"):
        return Route("torch", "capturable=True")
    if type(param) not in PLAIN_TYPES:
        return Route("torch", f"the parameter is a {type(param).__name__}, not a plain tensor")
    if param.device.type != "cpu":
        if setting == "cpu":
            raise RuntimeError(
                f"FASTOPT_BACKEND=cpu, but parameter {name_of(optimizer, index)} is on "
                f"{param.device}: move it to the CPU, or unset FASTOPT_BACKEND"
            )
        return Route("torch", f"no backend for device type {param.device.type!r}")
    if param.layout != torch.strided or param.dtype not in CPU_DTYPES:
        return Route("torch", f"no kernel for {param.dtype}, {param.layout}")
    if param.is_conj() or param.is_neg():
        return Route("torch", "the parameter is a lazy conjugate or negation")
    return route_of_grad(optimizer, param.grad, index)


def route_of_grad(optimizer: FusedStep, grad: Tensor | None, index: int) -> Route:
    if grad is None or (type(grad) in PLAIN_TYPES and grad.layout == torch.strided):
        if grad is not None and (grad.is_conj() or grad.is_neg()):
            return Route("torch", "the gradient is a lazy conjugate or negation", lasting=False)
        return Route("cpu", "")
    if type(grad) not in PLAIN_TYPES:
        reason = f"the gradient is a {type(grad).__name__}, not a plain tensor"
        return Route("torch", reason, lasting=False)
    if optimizer._rule != "sgd":
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support sparse gradients: parameter "
            f"{name_of(optimizer, index)} has a gradient of layout {grad.layout}, allowed is "
            "torch.strided; make it dense (sparse=False in its module), or use "
            "torch.optim.SparseAdam for it. No parameter was changed"
        )
    return Route("torch", f"the gradient's layout is {grad.layout}", lasting=False)


def create_states(optimizer: FusedStep, routes: list[Route]) -> bytes:
    """Create the states that torch would, for every engine parameter that now has a gradient.

    Returns one byte per parameter: 1 where its states hold nothing yet (SGD's momentum buffer,
    which the first step writes without reading). Nothing is stored until all of them exist.
    """
    rule = optimizer._rule
    fresh = bytearray(len(routes))
    new: list[tuple[Tensor, dict[str, Tensor]]] = []
    for index, (group, param) in enumerate(parameters(optimizer)):
        if routes[index].backend == "torch" or param.grad is None:
            continue
        state = optimizer.state[param] if param in optimizer.state else {}
        created: dict[str, Tensor] = {}
        if _core.counts_steps(rule) and "step" not in state:
            wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
            created["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
        for name in _core.state_names(rule, group):
            if state.get(name) is None:
                if rule == "sgd":
                    created[name] = torch.empty_like(param.grad, requires_grad=False)
                    fresh[index] = 1
                else:
                    created[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if created:
            new.append((param, created))
    for param, created in new:
        optimizer.state[param].update(created)
    return bytes(fresh)


class Plan:
    """How one optimizer steps, until its parameters, states or gradients ask for another way."""

    def __init__(self, optimizer: FusedStep) -> None:
        self.routes = [
            route(optimizer, group, param, index)
            for index, (group, param) in enumerate(parameters(optimizer))
        ]
        self.lasting = all(r.lasting for r in self.routes)
        self._rest = any(r.backend == "torch" for r in self.routes)
        fresh = create_states(optimizer, self.routes)
        self._core = _core.Plan(
            optimizer._rule,
            optimizer.param_groups,
            optimizer.state,
            bytes(r.backend == "cpu" for r in self.routes),
            fresh,
        )

    def step(self, optimizer: FusedStep, grad_scale: float | None) -> bool:
        """Step, or return False where something is not as planned: nothing has been changed."""
        return self._run(optimizer, grad_scale) is None

    def first_step(self, optimizer: FusedStep, grad_scale: float | None) -> None:
        """Step right after planning: what is still refused is an error."""
        refusal = self._run(optimizer, grad_scale)
        if refusal is not None:
            index, reason = refusal
            where = f"parameter {name_of(optimizer, index)}: " if index >= 0 else ""
            raise RuntimeError(
                f"{type(optimizer).__name__}.step(): {where}{reason}. No parameter was changed"
            )

    def _run(self, optimizer: FusedStep, grad_scale: float | None) -> tuple[int, str] | None:
        before = None
        if self._rest:

            def before() -> None:
                rest = [
                    param
                    for (_, param), r in zip(parameters(optimizer), self.routes, strict=True)
                    if r.backend == "torch"
                ]
                optimizer._torch_step_of(rest, grad_scale)

        return self._core.step(
            optimizer.param_groups, optimizer.state, torch.get_num_threads(), grad_scale, before
        )
