"""The step of every fastopt optimizer: the fused path, who listens, torch's own path.

Each class is `class Adam(FusedStep, torch.optim.Adam)`: constructor, param groups, state_dict,
hooks and pickling are torch's own and stay so; only what happens inside `step` is ours.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch._C._dynamo.eval_frame import (
    _FrameAction,
    _FrameExecStrategy,
    set_code_exec_strategy,
)
from torch.autograd import _profiler_enabled  # type: ignore[attr-defined]
from torch.optim.optimizer import (
    _device_dtype_check_for_fused,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from .. import arguments, checkpoints, precision
from ..arguments import OWN, Argument, setting
from ..composition import measures
from ..plan import Plan, create_states, stepped, version
from ..ranks import local
from ..routes import name_of, parameters
from ..stepping import NO_SCALER, Outcome, Scaler
from ._backward import Backward
from ._record import Blank, Record, Summary


class FusedStep(Backward):
    """Mixin before one of torch's optimizer classes: its update, done by fastopt's engine."""

    _arguments: ClassVar[Mapping[str, Argument]] = OWN  # those that torch's class lacks

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_rule" in cls.__dict__:
            cls.__signature__ = arguments.signature(cls.__bases__[1], cls._arguments)  # type: ignore[attr-defined]

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        # Here and not in __init__, which copies and some subclasses do without.
        made = super().__new__(cls)
        made._record = Record()
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        own = {name: kwargs.pop(name) for name in self._arguments if name in kwargs}
        arguments.check(self._arguments, own)
        own = {n: value for n, value in own.items() if value != self._arguments[n].default}
        self.norm_group = kwargs.pop("norm_group", None)
        super().__init__(*args, **kwargs)
        self.defaults.update(own)
        arguments.adopt(self, own, [])
        for place in range(len(self.param_groups)):
            self._check_formats(place)
        if own.get("fused"):  # as torch's classes that have it
            if self.defaults["differentiable"]:
                raise RuntimeError("`fused` does not support `differentiable`")
            if self.defaults["foreach"]:
                raise RuntimeError("`fused` and `foreach` cannot be `True` together.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        arguments.check(self._arguments, {**self.defaults, **param_group})
        super().add_param_group(param_group)
        try:
            self._check_formats(len(self.param_groups) - 1)
        except ValueError:
            self.param_groups.pop()
            raise

    add_param_group.__doc__ = torch.optim.Optimizer.add_param_group.__doc__

    @property
    def norm_group(self) -> torch.distributed.ProcessGroup | None:
        """The processes over which `max_grad_norm`, `skip_nonfinite` and `grad_norm` go, beside
        those that DTensors tell: of FSDP1, ZeRO and pipeline stages. Neither copied nor saved.
        """
        return self._record.norm_group

    @norm_group.setter
    def norm_group(self, group: torch.distributed.ProcessGroup | None) -> None:
        self._record.norm_group = group
        self._record.plan = None

    def _check_formats(self, place: int) -> None:
        """Raise ValueError where a param group asks for formats that do not suit its parameters."""
        group = self.param_groups[place]
        first = sum(len(before["params"]) for before in self.param_groups[:place])
        for index, param in enumerate(group["params"], first):
            if reason := precision.unfit(group, param):
                raise ValueError(f"parameter {name_of(self, index)} {reason}")

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Args:
            closure: reevaluates the model and returns the loss (optional).

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient or state does not fit its parameter; the message names the
                parameter, and no tensor and no state has been changed. What torch's own step
                refuses of the parameters that take it (see :func:`fastopt.explain`), it refuses in
                its own words and in mid-step: some of those parameters may then be updated, but no
                other.
        """
        record = self._record
        if record.swapped:
            self._refuse_inside_swap("step()")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        own = self.__dict__  # GradScaler sets both around its call of step()
        found_inf, grad_scale = own.get("found_inf"), own.get("grad_scale")
        scaler = NO_SCALER
        if found_inf is not None or grad_scale is not None:
            scaler = Scaler(found_inf, grad_scale)
        dropped = record.drop_stale_corrections(self.state) if record.corrected else []
        if record.shares is not None:  # what was measured for them was of other gradients
            record.shares.measured.found = None
        blank: list[Blank] = []
        if record.blank:
            having = [p for _, p in parameters(self) if p.grad is not None]
            blank = record.drop_blank(self.state, having)
        try:
            plan, outcome = self._run(scaler)
        except BaseException:
            record.take_back(dropped)
            record.put_back(self.state, blank)
            raise
        record.last = plan
        if outcome == "skipped":
            record.take_back(dropped)
            record.put_back(self.state, blank)
            self._skipped(scaler)
        elif plan.corrected or record.corrected:
            record.corrected = {param: version(param) for param in plan.corrected}
        return loss

    def _is_asked_for_states(self, args: Any, kwargs: Any) -> bool:
        """Whether step() is called by torch.distributed.checkpoint, which wants the states of an
        optimizer that has had no step: with closure=None, learning rates of 0 and zeros for
        gradients.
        """
        if self.state or not (args == (None,) or kwargs == {"closure": None}):
            return False
        if any(group["lr"] != 0 for group in self.param_groups):
            return False
        grads = [p.grad for _, p in parameters(self) if p.grad is not None]
        return bool(grads) and not any(local(g).any() for g in grads)

    def _make_states(self) -> None:
        """Make every state as the first step will, and change nothing else: torch's way, a step of
        zeros, counts as one and has weight decay in its moments.
        """
        new = create_states(self, [p.requires_grad for _, p in parameters(self)])
        new.store(self)
        self._record.begin_blank(new.created)

    def _run(self, scaler: Scaler) -> tuple[Plan, Outcome]:
        """By the plan there is, or else by a new one; which it was."""
        record = self._record
        plan, outcome = stepped(self, record.plan, scaler)
        record.plan = plan if plan.lasting else None
        return plan, outcome

    def _skipped(self, scaler: Scaler) -> None:
        """Count a step that was left out, and clear the gradients where that is asked for."""
        record = self._record
        norm = None if record.last is None else record.last.grad_norm
        if scaler.found_inf is not None and scaler.found_inf.item():  # nobody measured it
            norm = math.nan if measures(self.param_groups) else None
        record.last = Summary(norm)
        record.skipped += any(setting(group, "skip_nonfinite") for group in self.param_groups)
        for group in self.param_groups:
            for p in group["params"]:
                if setting(group, "clear_grads") and p.grad is not None:
                    p.grad.zero_()

    @property
    def skipped_steps(self) -> int:
        """Steps that `skip_nonfinite` left out. On a GPU, reading it waits for the last step.

        GradScaler leaves steps out before it calls step(), unless `fused=True` or `clear_grads` is
        given: those are not counted. Copies and pickles go on counting, checkpoints do not count.
        """
        return self._record.skipped_steps

    @property
    def grad_norm(self) -> torch.Tensor | None:
        """The L2 norm of all gradients in the last step, before clipping: a 0-d tensor.

        Measured where a group has `max_grad_norm` or `skip_nonfinite`, else None, as before the
        first step, in a copy and after load_state_dict(). Of a step that was left out because of
        what GradScaler found it is not finite. float64 where a parameter is, else float32. On a GPU
        it stays there, and nobody waits for it.
        """
        last = self._record.last
        norm = None if last is None else last.grad_norm
        wide = any(p.dtype.to_real() == torch.float64 for _, p in parameters(self))
        dtype = torch.float64 if wide else torch.float32
        if isinstance(norm, torch.Tensor):
            return norm.to(dtype, copy=True)
        return None if norm is None else torch.tensor(norm, dtype=dtype)

    def stats(self) -> dict[str, dict[str, float]]:
        """What the last step did to each parameter of a group with `track_stats`; waits for a GPU.

        Returns:
            By parameter name, where the optimizer was given names, else by "group.place":
            `grad_norm`, of the gradient before clipping; `update_norm`, of the change of the
            parameter; `weight_norm`, of the parameter after it; `update_ratio`, update over weight.
            Empty where nothing was done to any: before the first step, in a copy, after
            load_state_dict(), and where `skip_nonfinite` or GradScaler left the last step out.

        Raises:
            RuntimeError: no group has `track_stats`.
        """
        if not any(setting(group, "track_stats") for group in self.param_groups):
            name = type(self).__name__
            raise RuntimeError(
                f"this {name} tracks no statistics: make it with {name}(..., track_stats=True), or "
                "set group['track_stats'] in its param_groups"
            )
        last = self._record.last
        return {
            name: {
                "grad_norm": grad,
                "update_norm": update,
                "weight_norm": weight,
                "update_ratio": update / weight if weight else math.inf if update else 0.0,
            }
            for name, grad, update, weight in ([] if last is None else last.stats)
        }

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        if (args or kwargs) and self._is_asked_for_states(args, kwargs):
            return self._make_states()
        # torch wraps step() to run hooks and to open a profiler range, which costs more than a
        # small model's update. The same wrapper runs here whenever anybody listens; where a
        # subclass overrides step(), torch has wrapped that one.
        if type(self).step is FusedStep.step and (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or _profiler_enabled()
        ):
            return self._hooked_step(*args, **kwargs)
        # Passing on what is empty takes 2 % of a small model's step.
        return self._step(*args, **kwargs) if args or kwargs else self._step()

    functools.update_wrapper(step, _step, assigned=["__doc__"])  # and its signature
    step.hooked = True  # type: ignore[attr-defined]  # keeps torch from wrapping it once more
    # torch.compile calls it as it stands, one opaque call between two graphs, and traces nothing of
    # it: what torch.compiler.disable does by a wrapper that takes 0.5 us of a small model's 7.5,
    # and imports the compiler.
    step._torchdynamo_disable = True  # type: ignore[attr-defined]
    step._torchdynamo_disable_msg = "fastopt's step() is compiled already"  # type: ignore[attr-defined]
    set_code_exec_strategy(step.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.SKIP))

    def _torch_step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Torch's own step, without the hooks around it."""
        if "fused" in self._arguments:  # checked as by torch's classes that have it
            for group in self.param_groups:
                for p in group["params"] if setting(group, "fused") else ():
                    if p.grad is not None and not self.state.get(p):
                        _device_dtype_check_for_fused(p)
        step = super().step.__func__  # type: ignore[attr-defined]
        if getattr(step, "hooked", False):
            step = step.__wrapped__
        return step(self, closure)

    def _skips_on(self, device: torch.device) -> torch.Tensor:
        return self._record.skips_on(device)

    def _torch_step_of(self, params: Iterable[torch.Tensor], grad_scale: float | None) -> None:
        """Torch's own step for these parameters only."""
        chosen = {id(p) for p in params}
        groups = self.param_groups
        own = self.__dict__
        scaler: dict[str, Any] = {k: own[k] for k in ("grad_scale", "found_inf") if k in own}
        try:
            for name in scaler:
                del own[name]
            self.param_groups = [
                {**group, "params": [p for p in group["params"] if id(p) in chosen]}
                for group in groups
            ]
            if "decoupled_weight_decay" in self._arguments:
                self._decay()
            if grad_scale is not None:
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is not None:
                            p.grad.div_(grad_scale)
            self._torch_step()
        finally:
            self.param_groups = groups
            own.update(scaler)

    @torch.no_grad()
    def _decay(self) -> None:
        """Decoupled weight decay before a step of torch's that does not know it."""
        for group in self.param_groups:
            # By 1, torch makes NaN of the infinities of complex numbers.
            if setting(group, "decoupled_weight_decay") and group["weight_decay"]:
                for p in group["params"]:
                    if p.grad is not None:
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                group["weight_decay"] = 0.0

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether GradScaler hands its scale and `found_inf` over to step(), for one pass over
        memory, rather than unscale by itself, and leave step() out where gradients overflow.

        As in torch, what is made with `fused=True` says so. So does what is to clear its gradients
        in a step left out too: an infinity left in them would keep every later step from being
        done. Not where `norm_group` is: what GradScaler hands over is one process's finding, and
        the scales of all would go apart; unscaled by ShardedGradScaler they agree.
        """
        if self.norm_group is not None:
            return False
        clears = (setting(group, "clear_grads") for group in self.param_groups)
        return bool(self.defaults.get("fused") or any(clears))

    @_step_supports_amp_scaling.setter
    def _step_supports_amp_scaling(self, value: bool) -> None:
        """Torch's constructors set it where they are given `fused=True`, which `defaults` knows."""

    def state_dict(self) -> dict[str, Any]:
        self._refuse_inside_swap("state_dict()")
        return super().state_dict()

    state_dict.__doc__ = torch.optim.Optimizer.state_dict.__doc__

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The last of the hooks before the load: it sees what the others have left.
        hook = self.register_load_state_dict_pre_hook(checkpoints.prepare)
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()

    def portable_state_dict(self) -> dict[str, Any]:
        """What torch's class can load: its names alone, in float32, and its arguments alone.

        Codes and 16-bit states are decoded. Corrections of weights (`master_low`) and averages
        (`ema`), for which torch has no place, are left out; :meth:`state_dict` has all, to the bit.
        """
        return checkpoints.portable(self, {*self._arguments})

    load_state_dict.__doc__ = torch.optim.Optimizer.load_state_dict.__doc__

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_inside_swap("a copy")
        return {**super().__getstate__(), "_skipped_steps": self.skipped_steps}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._refuse_inside_swap("load_state_dict()")
        groups = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        # A checkpoint of torch's knows nothing of our arguments, others' lack some of torch's: they
        # stay what they are.
        arguments.adopt(self, dict.fromkeys([*self.defaults, *self._arguments]), groups)
        record = self._record
        # Loaded state replaces tensors; the plan must not keep the old ones until the next step.
        record.plan = record.last = None
        record.corrected.clear()
        checkpoints.finish(self)
        record.drop_blank(self.state, [*record.blank])  # what the checkpoint lacked
        record.skipped = self.__dict__.pop("_skipped_steps", record.skipped)
