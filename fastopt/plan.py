"""A step's tensors: which path each parameter takes and why, new states, then the step itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _core
from .backends import triton
from .backends.triton import Scaler
from .backends.triton.slots import Changed
from .composition import Composition, Outcome, Stats, passes_on

if TYPE_CHECKING:
    from .backends.triton.launch import Launch
    from .optim._fused import FusedStep

BACKENDS = ("auto", "cpu", "triton", "torch")
DTYPES = tuple(getattr(torch, name) for name in _core.dtypes)
PLAIN_TYPES = (Tensor, torch.nn.Parameter)
NO_SCALER = Scaler()


@dataclass(frozen=True)
class Route:
    """The path of one parameter: `backend` is "cpu", "triton" or "torch"; `reason` says why.

    `lasting` is False where the reason lies in this step's gradient and not in the parameter.
    """

    backend: str
    reason: str
    lasting: bool = True


def backend_setting() -> str:
    """FASTOPT_BACKEND: auto (default), cpu, triton or torch."""
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
    found = best_route(optimizer, group, param, index)
    if found.backend == "torch" and group.get("eps_in_sqrt"):
        raise RuntimeError(
            f"eps_in_sqrt=True needs fastopt's own kernels, but parameter "
            f"{name_of(optimizer, index)} takes torch's step ({found.reason}): mend that, or leave "
            "eps_in_sqrt out. No parameter was changed"
        )
    return found


def best_route(optimizer: FusedStep, group: dict[str, Any], param: Tensor, index: int) -> Route:
    setting = backend_setting()
    if setting == "torch":
        return Route("torch", "FASTOPT_BACKEND=torch")
    if group.get("differentiable"):
        return Route("torch", "differentiable=True")
    if type(param) not in PLAIN_TYPES:
        return Route("torch", f"the parameter is a {type(param).__name__}, not a plain tensor")
    backend, reason = backend_for(optimizer, setting, param.device, index)
    if reason:
        return Route("torch", reason)
    if backend == "cpu" and group.get("capturable"):
        return Route("torch", "capturable=True")
    if param.layout != torch.strided or param.dtype not in DTYPES:
        return Route("torch", f"no kernel for {param.dtype}, {param.layout}")
    if param.is_conj() or param.is_neg():
        return Route("torch", "the parameter is a lazy conjugate or negation")
    return route_of_grad(optimizer, param.grad, index, backend)


def backend_for(
    optimizer: FusedStep, setting: str, device: torch.device, index: int
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
    reason = reason or triton.missing()
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
    optimizer: FusedStep, grad: Tensor | None, index: int, backend: str = "cpu"
) -> Route:
    if grad is None or (type(grad) in PLAIN_TYPES and grad.layout == torch.strided):
        return Route(backend, "")
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


def resolve_gradients(optimizer: FusedStep, routes: list[Route]) -> None:
    """Give lazy conjugates and negations, which autograd may leave in .grad, the memory they stand
    for: the engine reads memory. Their values stay what they are.
    """
    for (_, param), r in zip(parameters(optimizer), routes, strict=True):
        grad = param.grad
        if r.backend != "torch" and grad is not None and (grad.is_conj() or grad.is_neg()):
            param.grad = grad.resolve_conj().resolve_neg()


@dataclass(frozen=True)
class NewStates:
    """States that a first step created, to be dropped again where that step is refused.

    `fresh` has one byte per parameter: 1 where its states hold nothing yet (SGD's momentum buffer,
    which the first step writes without reading).
    """

    fresh: bytes
    created: list[tuple[Tensor, dict[str, Tensor]]]

    @torch.no_grad()
    def begin_averages(self) -> None:
        """An average begins as the first updated parameter, as in torch.optim.swa_utils."""
        for param, created in self.created:
            if "ema" in created:
                created["ema"].copy_(param)

    def drop(self, optimizer: FusedStep) -> None:
        for param, created in self.created:
            state = optimizer.state[param]
            for name in created:
                state.pop(name, None)
            if not state:
                del optimizer.state[param]


def create_states(optimizer: FusedStep, routes: list[Route]) -> NewStates:
    """Create the states that torch would, for every engine parameter that now has a gradient.

    Nothing is stored until all of them exist.
    """
    rule = optimizer._rule
    fresh = bytearray(len(routes))
    new: list[tuple[Tensor, dict[str, Tensor]]] = []
    for index, (group, param) in enumerate(parameters(optimizer)):
        if routes[index].backend == "torch" or param.grad is None:
            continue
        state = optimizer.state.get(param, {})
        created: dict[str, Tensor] = {}
        if _core.counts_steps(rule) and "step" not in state:
            wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
            created["step"] = torch.zeros((), dtype=torch.float64 if wide else torch.float32)
        skippable = routes[index].backend == "triton"  # by GradScaler, and the host never hears
        for name in _core.state_names(rule, group):
            if state.get(name) is None:
                if rule == "sgd":
                    empty = torch.zeros_like if skippable else torch.empty_like
                    created[name] = empty(param.grad, requires_grad=False)
                    fresh[index] = 1
                else:
                    created[name] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["ema_decay"] is not None and "ema" not in state:
            created["ema"] = param.detach().clone()
        if created:
            new.append((param, created))
    for param, created in new:
        optimizer.state[param].update(created)
    return NewStates(bytes(fresh), new)


def routes_of(optimizer: FusedStep) -> list[Route]:
    """The path of every parameter, over all groups in order."""
    return [
        route(optimizer, group, param, index)
        for index, (group, param) in enumerate(parameters(optimizer))
    ]


def all_on_device(optimizer: FusedStep) -> bool:
    """Whether the whole step runs on devices, so that no tensor need be read by the host."""
    return all(r.backend == "triton" for r in routes_of(optimizer))


def refusal(optimizer: FusedStep, index: int, reason: str) -> RuntimeError:
    """The error for a step that was not taken."""
    where = f"parameter {name_of(optimizer, index)}: " if index >= 0 else ""
    return RuntimeError(
        f"{type(optimizer).__name__}.step(): {where}{reason}. No parameter was changed"
    )


class Plan:
    """How one optimizer steps, until its parameters, states or gradients ask for another way."""

    def __init__(self, optimizer: FusedStep) -> None:
        self.routes = routes_of(optimizer)
        self.lasting = all(r.lasting for r in self.routes)
        self.on_device = all(r.backend == "triton" for r in self.routes)
        self._rest = any(r.backend == "torch" for r in self.routes)
        self._fuses_passes = all(r.backend == "cpu" for r in self.routes)
        self._composition: Composition | None = None
        self._launch: Launch | None = None
        self._core: _core.Plan | None = None

    def first_step(
        self, optimizer: FusedStep, grad_scale: float | None, scaler: Scaler = NO_SCALER
    ) -> Outcome:
        """Create what is missing and step; what is refused now is an error and leaves nothing."""
        resolve_gradients(optimizer, self.routes)
        new = create_states(optimizer, self.routes)
        outcome: Outcome = None
        try:
            self._build(optimizer, new.fresh, scaler)
            outcome = self.step(optimizer, grad_scale, scaler)
            if isinstance(outcome, tuple):
                raise refusal(optimizer, *outcome)
        except BaseException:
            new.drop(optimizer)
            raise
        if outcome == "skipped":
            new.drop(optimizer)
        else:
            new.begin_averages()
        return outcome

    def _build(self, optimizer: FusedStep, fresh: bytes, scaler: Scaler) -> None:
        launched = {i for i, r in enumerate(self.routes) if r.backend == "triton"}
        if launched:
            from .backends.triton.launch import Launch

            try:
                self._launch = Launch(optimizer, optimizer._rule, launched, fresh, scaler)
            except Changed as refused:
                raise refusal(optimizer, refused.index, str(refused)) from refused
        # It reads hyperparameters on the host: not where they may be tensors on a device.
        if not launched or any(r.backend == "cpu" for r in self.routes):
            self._core = _core.Plan(
                optimizer._rule,
                optimizer.param_groups,
                optimizer.state,
                bytes(r.backend == "cpu" for r in self.routes),
                fresh,
            )

    def step(
        self, optimizer: FusedStep, grad_scale: float | None, scaler: Scaler = NO_SCALER
    ) -> Outcome:
        """Step; `grad_scale` is for parameters on the CPU and for torch's path, `scaler` for
        Triton's.
        """
        if self._fuses_passes and self._core is not None:
            threads = torch.get_num_threads()
            return self._core.step(optimizer.param_groups, optimizer.state, threads, grad_scale)
        self._composition = None
        if not any(map(passes_on, optimizer.param_groups)):
            return self._update(optimizer, grad_scale, scaler)
        self._composition = Composition(optimizer, grad_scale)
        return self._composition.run(lambda: self._update(optimizer, None, NO_SCALER))

    @property
    def grad_norm(self) -> float | None:
        """The norm that the last step measured, if it did."""
        if self._composition is not None:
            return self._composition.norm
        return None if self._core is None else self._core.grad_norm

    @property
    def stats(self) -> list[Stats]:
        if self._composition is not None:
            return self._composition.stats
        return [] if self._core is None else self._core.stats()

    def _update(self, optimizer: FusedStep, grad_scale: float | None, scaler: Scaler) -> Outcome:
        launch = self._launch
        if launch is not None:
            try:
                launch.check(optimizer, scaler)
            except Changed as changed:
                return changed.index, str(changed)

        def before() -> None:
            if self._rest:
                rest = [
                    param
                    for (_, param), r in zip(parameters(optimizer), self.routes, strict=True)
                    if r.backend == "torch"
                ]
                optimizer._torch_step_of(rest, grad_scale)
            if launch is not None:
                torch.autograd.graph.increment_version(launch.params())
                launch.run(scaler)

        if self._core is None:
            before()
            return None
        return self._core.step(
            optimizer.param_groups,
            optimizer.state,
            torch.get_num_threads(),
            grad_scale,
            before if self._rest or launch is not None else None,
        )
