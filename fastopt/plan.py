"""A step's tensors: gradients made plain, new states, the plan of a step, then the step by it."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from operator import and_
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import _core, declared, precision, ranks
from .arguments import setting
from .composition import Composition, passes_on, without_passes
from .routes import (
    ENVIRONMENT,
    LEFT_OUT,
    SETTING,
    Route,
    flags,
    name_of,
    names,
    parameters,
    routes_of,
)
from .stepping import NO_SCALER, Changed, Outcome, Scaler, Stats, Stepping, Work

if TYPE_CHECKING:
    from .backends.triton.launch import Launch


def resolve_gradients(optimizer: Stepping, routes: list[Route]) -> None:
    """Give lazy conjugates and negations, which autograd may leave in .grad, the memory they stand
    for: the engine reads memory. Their values stay what they are.
    """
    for (_, param), r in zip(parameters(optimizer), routes, strict=True):
        grad = param.grad
        if not r.ours or grad is None:
            continue
        if grad.is_conj() or grad.is_neg():
            param.grad = grad = grad.resolve_conj().resolve_neg()
        ranks.place_gradient(param)


def version(tensor: Tensor) -> int:
    """Autograd's count of writes; of a tensor that has none, as of inference_mode, always 0."""
    return 0 if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class NewStates:
    """States that a first step created, to be taken back where that step is refused.

    `fresh` has one byte per parameter: 1 where its states hold nothing yet (SGD's momentum buffer,
    which the first step writes without reading).
    """

    fresh: bytes
    new_averages: bytes  # likewise 1 where the average is new
    created: list[tuple[Tensor, dict[str, Tensor | None]]]  # None: taken away
    kept: list[tuple[Tensor, int, dict[str, Any] | None]]  # parameter, its version, state before

    def store(self, optimizer: Stepping) -> None:
        for param, created in self.created:
            precision.put(optimizer.state[param], created)

    @torch.no_grad()
    def begin_averages(self) -> None:
        """An average begins as the first updated parameter, as in torch.optim.swa_utils. The engine
        does this by itself.
        """
        for param, created in self.created:
            if (average := created.get("ema")) is not None:
                average.copy_(param)

    def take_back(self, optimizer: Stepping) -> None:
        """Put every entry back where and as it was, None among them; not where autograd was told of
        the update: an interrupt then came behind it, and the states belong to it.
        """
        for param, before, kept in self.kept:
            if version(param) != before:
                continue
            if kept is None:
                optimizer.state.pop(param, None)
            else:
                optimizer.state[param].clear()
                optimizer.state[param].update(kept)


def create_states(optimizer: Stepping, ours: list[bool]) -> NewStates:
    """Create the states that torch would, in the formats that are asked for, for every parameter of
    `ours`, and convert those that are in others.
    """
    rule = optimizer._rule
    fresh, new_averages = bytearray(len(ours)), bytearray(len(ours))
    new: list[tuple[Tensor, dict[str, Tensor | None]]] = []
    kept: list[tuple[Tensor, int, dict[str, Any] | None]] = []
    for index, (group, param) in enumerate(parameters(optimizer)):
        if not ours[index]:
            continue
        there = optimizer.state.get(param)
        kept.append((param, version(param), None if there is None else dict(there)))
        state = there or {}
        created: dict[str, Tensor | None] = {}
        if unfit := precision.unfit(group, param):
            raise refusal(optimizer, index, f"it {unfit}")
        if rule in declared.WHOLE:
            created |= {n: t for n, t in declared.begun(rule, param).items() if n not in state}
        wide = torch.get_default_dtype() == torch.float64 and not group.get("fused")
        for name, _ in () if rule in declared.WHOLE else _core.carried(rule, group):
            if name not in state:
                number = dict(_core.carried(rule, group, waits=True))[name]
                dtype = torch.float64 if wide else torch.float32
                created[name] = torch.full((), number, dtype=dtype)
        kinds = declared.kinds(rule, group)
        for name, _ in () if rule in declared.WHOLE else _core.states(rule, group):
            found = state.get(name, state.get(name + precision.CODES))
            if found is None:
                start = dict(_core.states(rule, group, waits=True))[name]
                fresh[index] |= start is None
                created |= precision.new_state(group, param, kinds[name], name, start, state)
            elif isinstance(found, Tensor) and found.layout != torch.strided:
                # As torch's own step leaves a momentum buffer after a sparse gradient.
                reason = f"its state {name!r} has layout {found.layout}, but its gradient is dense"
                raise refusal(optimizer, index, f"{reason}; to_dense() the state first")
        try:
            created |= precision.converted(group, param, rule, state)
        except _core.Refused as refused:
            raise refusal(optimizer, index, str(refused)) from refused
        if setting(group, "ema_decay") is not None and "ema" not in state:
            created["ema"] = param.detach().clone()
            new_averages[index] = 1
        if created:
            new.append((param, created))
    return NewStates(bytes(fresh), bytes(new_averages), new, kept)


def refusal(optimizer: Stepping, index: int, reason: str) -> RuntimeError:
    """The error for a step that was not taken."""
    where = f"parameter {name_of(optimizer, index)}: " if index >= 0 else ""
    return RuntimeError(
        f"{type(optimizer).__name__}.step(): {where}{reason}. No parameter was changed"
    )


class Plan:
    """How one optimizer steps, until its parameters, states or gradients ask for another way."""

    def __init__(
        self,
        optimizer: Stepping,
        only: Collection[int] | None = None,
        agreement: ranks.Agreement | None = None,
    ) -> None:
        """`only`: the places of the parameters that it is for, where a step is taken share by share
        with what all processes agree on given beforehand.
        """
        self._setting, self._flags = ENVIRONMENT.get(SETTING), flags(optimizer)
        self.routes = [
            r if only is None or index in only else LEFT_OUT
            for index, r in enumerate(routes_of(optimizer))
        ]
        self.names = [*names(optimizer)]
        self.lasting = all(r.lasting for r in self.routes)
        backends = {r.backend for r in self.routes} - {LEFT_OUT.backend}
        self._on_cpu = backends <= {"cpu"}
        self._rest = "torch" in backends
        params = [param for _, param in parameters(optimizer)]
        devices = {param.device for param in params}
        self._shards = [
            p for p, r in zip(params, self.routes, strict=True) if r.ours and ranks.is_shard(p)
        ]
        self._agreement = agreement or ranks.Agreement(params, optimizer.norm_group)
        self._is_share = only is not None
        # For norms of tensors whose parts are in several processes.
        self._waits = self._agreement.cuts and declared.waits_for_norms(optimizer._rule)
        ranks.warn_of_unnamed(optimizer)
        # What an edit from outside makes the correction of stale.
        self.corrected = [
            p for group, p in parameters(optimizer) if setting(group, "master_weight_bits")
        ]
        # Else the norm spans backends, devices or processes, which a launch's does not: torch's own
        # passes are taken.
        launches = backends == {"triton"} and len(devices) == 1 and not self._agreement.needed
        self._fuses = self._on_cpu or launches
        self._composes = not self._fuses and any(map(passes_on, optimizer.param_groups))
        self._on_device = backends == {"triton"} and not self._composes
        self._composition: Composition | None = None
        self._agreed_stats: list[Stats] | None = None
        self._launch: Launch | None = None
        self._core: _core.Plan | None = None

    def first_step(self, optimizer: Stepping, scaler: Scaler = NO_SCALER) -> Outcome:
        """Create what is missing and step; what is refused now is an error and leaves nothing."""
        resolve_gradients(optimizer, self.routes)
        try:
            having = (param.grad is not None for _, param in parameters(optimizer))
            ours = (r.ours for r in self.routes)
            new = create_states(optimizer, [*map(and_, ours, having)])
        except _core.Refused as refused:
            raise refusal(optimizer, -1, str(refused)) from refused
        outcome: Outcome = None
        try:
            new.store(optimizer)
            self._build(optimizer, new, scaler)
            outcome = self.step(optimizer, scaler)
            if isinstance(outcome, tuple):
                raise refusal(optimizer, *outcome)
        except BaseException:
            new.take_back(optimizer)
            raise
        if outcome == "skipped":
            new.take_back(optimizer)
        elif self._composes:
            new.begin_averages()
        return outcome

    def _build(self, optimizer: Stepping, new: NewStates, scaler: Scaler) -> None:
        groups = optimizer.param_groups
        if self._composes:
            groups, scaler = [without_passes(group) for group in groups], NO_SCALER
        backends = [r.backend for r in self.routes]
        found = (optimizer._rule, groups, optimizer.state, backends, new.fresh, new.new_averages)
        launched = {i for i, r in enumerate(self.routes) if r.backend == "triton"}
        if not launched:
            self._core = _core.Plan(*found, shards=self._parts(optimizer))
            return
        from .backends.triton.launch import Launch

        scale = math.nan if scaler.unscales else None
        refused, members = _core.Plan(*found).layers(groups, optimizer.state, scale)
        if refused is not None:
            raise refusal(optimizer, *refused)
        present = [
            index
            for index, (_, param) in enumerate(parameters(optimizer))
            if self.routes[index].ours and param.grad is not None
        ]
        of = dict(zip(present, members, strict=True))
        try:
            self._launch = launch = Launch(
                optimizer, groups, launched, of, new.fresh, new.new_averages, scaler
            )
        except Changed as changed:
            raise refusal(optimizer, changed.index, str(changed)) from changed
        self._core = _core.Plan(*found, launch.rows, launch.numbers_of_passes)

    def _parts(self, optimizer: Stepping) -> list[_core.Shard]:
        """What each parameter's process holds of it; empty where that is all of it."""
        if not self._agreement.needed and not self._shards:
            return []
        params = [param for _, param in parameters(optimizer)]
        cuts = [(ranks.cut(p) or (0, 0, 0)) if ranks.is_shard(p) else (0, 0, 0) for p in params]
        return [
            _core.Shard(*cut, team) for cut, team in zip(cuts, self._agreement.team_of, strict=True)
        ]

    def step(self, optimizer: Stepping, scaler: Scaler = NO_SCALER) -> Outcome:
        """Step once, with what GradScaler handed over."""
        # The flags of groups that the engine alone takes are looked at by the core.
        if ENVIRONMENT.get(SETTING) is not self._setting or (
            not self._on_cpu and flags(optimizer) != self._flags
        ):
            return -1, "what decides the way of its parameters has changed"
        for param in self._shards:
            ranks.place_gradient(param)
        grad_scale = None
        if scaler is not NO_SCALER and not self._on_device:
            # Read by the host only where it must: that waits for the device.
            if scaler.found_inf is not None and scaler.found_inf.item():
                return "skipped"
            if scaler.grad_scale is not None:
                grad_scale = scaler.grad_scale.item()
        elif scaler.unscales:
            grad_scale = math.nan
        if not self._fuses and self._composes != any(map(passes_on, optimizer.param_groups)):
            return -1, "the passes around the update have changed"
        if self._composes:
            composition = Composition(optimizer, grad_scale, self._agreement)
            outcome = composition.run(lambda: self._update(optimizer, None, NO_SCALER))
            self._composition = composition
        else:
            outcome = self._update(optimizer, grad_scale, scaler)
        shared = self._agreement.needed and not self._is_share
        if outcome is None and shared and self._tracked(optimizer):
            self._agreed_stats = self._agreement.stats(self.own_stats)
        return outcome

    def _update(self, optimizer: Stepping, grad_scale: float | None, scaler: Scaler) -> Outcome:
        assert self._core is not None
        groups, threads = optimizer.param_groups, torch.get_num_threads()
        agree = self._agreement.total if self._agreement.needed else None
        tensors = self._agreement.tensors if self._waits else None
        if self._on_cpu:
            return self._core.step(
                groups, optimizer.state, threads, grad_scale, None, agree, tensors
            )
        check = rest = run = None
        if self._rest:
            params = (param for _, param in parameters(optimizer))
            theirs = [p for p, r in zip(params, self.routes, strict=True) if r.backend == "torch"]
            rest = partial(optimizer._torch_step_of, theirs, grad_scale)
        if self._launch is not None:
            check = partial(self._launch.check, optimizer, scaler)
            run = partial(self._launch.run, scaler)
        return self._core.step(
            groups, optimizer.state, threads, grad_scale, check, None, tensors, rest, run
        )

    @property
    def grad_norm(self) -> float | Tensor | None:
        """The norm that the last step measured, if it did; a tensor where a device holds it."""
        if self._composition is not None:
            return self._composition.norm
        if self._launch is not None:
            return self._launch.norm
        return None if self._core is None else self._core.grad_norm

    @property
    def own_stats(self) -> list[Stats]:
        """What was measured in this process."""
        if self._composition is not None:
            return self._composition.stats
        if self._launch is not None:
            return self._launch.stats()
        return [] if self._core is None else self._core.stats()

    @staticmethod
    def _tracked(optimizer: Stepping) -> bool:
        return any(setting(group, "track_stats") for group in optimizer.param_groups)

    @property
    def stats(self) -> list[tuple[str, float, float, float]]:
        """Name of a parameter and norms of its gradient, its update and itself in the last step."""
        agreed = self._agreed_stats
        found = self.own_stats if agreed is None else agreed
        return [(self.names[index], g, update, weight) for index, g, update, weight in found]


class WholePlan(Plan):
    """Of a rule over whole tensors: no kernel of single elements has a part in it, and the passes
    are torch's.
    """

    def __init__(
        self,
        optimizer: Stepping,
        only: Collection[int] | None = None,
        agreement: ranks.Agreement | None = None,
    ) -> None:
        super().__init__(optimizer, only, agreement)
        self._fuses = self._on_cpu = self._on_device = False
        self._composes = any(map(passes_on, optimizer.param_groups))
        shapes = declared.WHOLE[optimizer._rule].shapes
        self._kept = [(p, [*shapes(tuple(p.shape))]) for _, p in parameters(optimizer)]

    def _build(self, optimizer: Stepping, new: NewStates, scaler: Scaler) -> None:
        pass

    def _update(self, optimizer: Stepping, grad_scale: float | None, scaler: Scaler) -> Outcome:
        given = [*parameters(optimizer)]
        if len(given) != len(self._kept):
            return -1, "its parameters have changed"
        work, theirs = [], []
        for index, (group, param) in enumerate(given):
            planned, names = self._kept[index]
            route, grad = self.routes[index], param.grad
            if param is not planned:
                return -1, "its parameters have changed"
            if route.backend == "torch":
                theirs.append(param)
            if not route.ours or grad is None:
                continue
            if _core.memory_of(grad) is None or grad.layout != torch.strided or grad.is_neg():
                return index, "its gradient is of another kind than before"
            if grad.shape != param.shape or grad.device != param.device:  # .data was set
                return index, (
                    f"its gradient has shape {[*grad.shape]} on {grad.device}, the parameter "
                    f"{[*param.shape]} on {param.device}"
                )
            state = optimizer.state.get(param, {})
            if not all(name in state for name in names):
                return index, "it has a gradient for the first time"
            work.append(Work(index, route.backend, group, param))

        def first() -> None:
            if theirs:
                optimizer._torch_step_of(theirs, grad_scale)
            if grad_scale is not None:
                grads = [param.grad for *_, param in work if param.grad is not None]
                torch._foreach_div_(grads, grad_scale)

        if not work:
            first()
            return None
        return optimizer._whole_step_of(work, first if theirs or grad_scale is not None else None)


def stepped(
    optimizer: Stepping,
    plan: Plan | None,
    scaler: Scaler,
    only: Collection[int] | None = None,
    agreement: ranks.Agreement | None = None,
) -> tuple[Plan, Outcome]:
    """One step, by the plan there is or else by a new one; which it was."""
    if plan is not None:
        outcome = plan.step(optimizer, scaler)
        if outcome is None or outcome == "skipped":
            return plan, outcome
    whole = optimizer._rule in declared.WHOLE
    plan = (WholePlan if whole else Plan)(optimizer, only, agreement)
    return plan, plan.first_step(optimizer, scaler)
