"""Which path each parameter takes and why: the setting, one parameter, all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _core, ranks
from .backends import batched, cpu, triton
from .declared import WHOLE, Whole
from .precision import ASKING, asked
from .stepping import Stepping

BACKENDS = ("auto", "cpu", "triton", "torch")
DTYPES = tuple(getattr(torch, name) for name in _core.dtypes)


@dataclass(frozen=True)
class Route:
    """The path of one parameter: `backend` is "cpu", "triton", "batched" or "torch", or "none"
    where this step leaves it out; `reason` says why.

    `lasting` is False where the reason may be gone with the next step: it lies in a gradient, or in
    memory of the parameter that `param.data = ...` replaces.
    """

    backend: str
    reason: str
    lasting: bool = True

    @property
    def ours(self) -> bool:
        return self.backend in ("cpu", "triton", "batched")


LEFT_OUT = Route("none", "it is updated with others")


def backend_setting() -> str:
    """FASTOPT_BACKEND: auto (default), cpu, triton or torch."""
    named = os.environ.get("FASTOPT_BACKEND", "auto")
    if named not in BACKENDS:
        raise ValueError(
            f"FASTOPT_BACKEND is {named!r}; allowed: {', '.join(BACKENDS)}. "
            "Unset it to let fastopt choose."
        )
    return named


# What os.environ's own methods encode a name for and decode a value from, which takes 450 ns: the
# same object while nobody sets it.
ENVIRONMENT: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
SETTING = os.fsencode("FASTOPT_BACKEND")
# What only our kernels can do; then what decides, beside FASTOPT_BACKEND, over the way of a group's
# parameters.
OURS = ("eps_in_sqrt", *ASKING)
FLAGS = ("differentiable", "capturable", *OURS)


def flags(optimizer: Stepping) -> list[list[Any]]:
    return [[group.get(name) for name in FLAGS] for group in optimizer.param_groups]


def parameters(optimizer: Stepping) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """(group, parameter), over all groups in order: the order of every index in messages."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield group, param


def names(optimizer: Stepping) -> Iterator[str]:
    """What stats() calls the parameters."""
    for i, group in enumerate(optimizer.param_groups):
        given = group.get("param_names")
        yield from given or (f"{i}.{k}" for k in range(len(group["params"])))


def name_of(optimizer: Stepping, index: int) -> str:
    """The index-th parameter, by its name where the optimizer was given names."""
    for i, group in enumerate(optimizer.param_groups):
        if index < len(group["params"]):
            place = f"param_groups[{i}]['params'][{index}]"
            names = group.get("param_names")
            return f"{names[index]!r} ({place})" if names else place
        index -= len(group["params"])
    raise IndexError(index)


def route(optimizer: Stepping, group: dict[str, Any], param: Tensor, index: int) -> Route:
    """Decide the path of one parameter; raise where no path can take it."""
    found = best_route(optimizer, group, param, index)
    needed = [name for name in OURS if group.get(name)]
    if found.backend == "torch" and needed:
        needs = ", ".join(f"{name}={group[name]}" for name in needed)
        raise RuntimeError(
            f"{needs} needs fastopt's own kernels, but parameter {name_of(optimizer, index)} takes "
            f"torch's step ({found.reason}): mend that, or leave {', '.join(needed)} out. No "
            "parameter was changed"
        )
    return found


def best_route(optimizer: Stepping, group: dict[str, Any], param: Tensor, index: int) -> Route:
    setting = backend_setting()
    if setting == "torch":
        return Route("torch", "FASTOPT_BACKEND=torch")
    if whole := WHOLE.get(optimizer._rule):
        return route_of_whole(optimizer, whole, param, index)
    if group.get("differentiable"):
        return Route("torch", "differentiable=True")
    shard = ranks.is_shard(param)  # which lets the core know of them
    if _core.memory_of(param) is None:
        return Route("torch", f"the parameter is a {type(param).__name__}, not a plain tensor")
    backend, reason = backend_for(optimizer, setting, param.device, index)
    if reason:
        return Route("torch", reason, lasting=False)
    if shard and (reason := ranks.lacks(param, backend, bool(asked(group)))):
        return Route("torch", reason)
    if backend == "cpu" and (reason := cpu.lacks(group)):
        return Route("torch", reason)
    if param.layout != torch.strided or param.dtype not in DTYPES:
        return Route("torch", f"no kernel for {param.dtype}, {param.layout}", lasting=False)
    if param.is_conj() or param.is_neg():
        return Route("torch", "the parameter is a lazy conjugate or negation", lasting=False)
    grad = param.grad
    if grad is not None and ranks.is_shard(grad) != shard:
        reason = f"the gradient is a {type(grad).__name__}, the parameter a {type(param).__name__}"
        return Route("torch", reason, lasting=False)
    return route_of_grad(optimizer, grad, index, backend)


def route_of_whole(optimizer: Stepping, whole: Whole, param: Tensor, index: int) -> Route:
    """The path where the rule looks at whole tensors: the core's, if it has the rule; else torch's
    operations, batched.
    """
    grad = param.grad
    for kind, found in (
        ("complex parameters", param.is_complex() and grad is not None),
        ("sparse gradients", grad is not None and grad.is_sparse),
    ):
        if found:  # in torch's words
            raise RuntimeError(f"{type(optimizer).__name__} does not support {kind}")
    if backend_setting() == "cpu" and param.device.type != "cpu":
        backend_for(optimizer, "cpu", param.device, index)
    for named, tensor in (("parameter", param), ("gradient", grad)):
        if tensor is not None and (ranks.is_shard(tensor) or _core.memory_of(tensor) is None):
            reason = f"the {named} is a {type(tensor).__name__}, not a plain tensor"
            return Route("torch", reason, lasting=named == "parameter")
    if param.layout != torch.strided or param.dtype not in DTYPES or param.is_complex():
        return Route("torch", f"no path for {param.dtype}, {param.layout}", lasting=False)
    if param.is_neg():
        return Route("torch", "the parameter is a lazy negation", lasting=False)
    if param.device.type == "cpu" and whole.compiled and backend_setting() != "triton":
        if grad is not None and grad.dtype != param.dtype:
            reason = f"the gradient is {grad.dtype}, the parameter {param.dtype}"
            return Route("batched", f"{batched.how(param)}: {reason}", lasting=False)
        return Route("cpu", "")
    return Route("batched", "")


def backend_for(
    optimizer: Stepping, setting: str, device: torch.device, index: int
) -> tuple[str, str]:
    """The backend for a device, and why there is none."""
    if device.type == "cpu" and setting != "triton":
        return "cpu", ""
    if setting == "cpu":
        raise RuntimeError(
            f"FASTOPT_BACKEND=cpu, but parameter {name_of(optimizer, index)} is on {device}: move "
            "it to the CPU, or unset FASTOPT_BACKEND"
        )
    reason = "" if device.type in ("cpu", "cuda") else f"no backend for device type {device.type!r}"
    reason = reason or triton.missing() or triton.lacks(optimizer._rule)
    if not reason and triton.interpreted() != (device.type == "cpu"):
        reason = (
            "Triton runs on the CPU only under TRITON_INTERPRET=1"
            if device.type == "cpu"
            else "TRITON_INTERPRET=1 runs Triton on the CPU only"
        )
    if reason and setting == "triton":
        raise RuntimeError(
            f"FASTOPT_BACKEND=triton, but parameter {name_of(optimizer, index)} is on {device}: "
            f"{reason}. Mend that, or unset FASTOPT_BACKEND"
        )
    return "triton", reason


def route_of_grad(
    optimizer: Stepping, grad: Tensor | None, index: int, backend: str = "cpu"
) -> Route:
    if grad is None or (_core.memory_of(grad) is not None and grad.layout == torch.strided):
        return Route(backend, "")
    if _core.memory_of(grad) is None:
        reason = f"the gradient is a {type(grad).__name__}, not a plain tensor"
        return Route("torch", reason, lasting=False)
    if not _core.takes_sparse(optimizer._rule):
        raise RuntimeError(
            f"{type(optimizer).__name__} does not support sparse gradients: parameter "
            f"{name_of(optimizer, index)} has a gradient of layout {grad.layout}, allowed is "
            "torch.strided; make it dense (sparse=False in its module), or use "
            "torch.optim.SparseAdam for it. No parameter was changed"
        )
    return Route("torch", f"the gradient's layout is {grad.layout}", lasting=False)


def routes_of(optimizer: Stepping) -> list[Route]:
    """The path of every parameter, over all groups in order."""
    return [
        route(optimizer, group, param, index)
        for index, (group, param) in enumerate(parameters(optimizer))
    ]
