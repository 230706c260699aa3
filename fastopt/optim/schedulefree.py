"""Schedule-free SGD and AdamW: what both share (the average, the two modes), their for-loops in
torch's operations, as torch has no such classes, then fastopt's steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import precision
from ..arguments import FUSED, OWN
from ..plan import version
from ._fused import FusedStep
from ._loop import Loop, counted


class Averaging(Loop):
    """What both for-loops share: z beside the parameter, the weight of a step, the two modes."""

    _numbers: ClassVar[dict[str, float]] = {"step": 0.0, "lr_max": -1.0, "weight_sum": 0.0}

    def _check(self, defaults: dict[str, Any]) -> None:
        beta = pull(defaults)
        if not 0 < beta < 1:  # at 0, the average could not be had from the parameter
            name = "momentum" if "momentum" in defaults else "beta parameter at index 0"
            raise ValueError(f"Invalid {name}: {beta}")
        super()._check(defaults)
        defaults["train_mode"] = True

    def _begin(self, name: str, p: Tensor) -> Tensor:
        return p.detach().clone() if name == "z" else super()._begin(name, p)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        self._refuse_in_eval_mode("step()")
        return super().step(closure)

    @torch.no_grad()
    def train(self) -> None:
        """Training mode: the parameters become the points at which gradients are taken, y."""
        self._enter(True)

    @torch.no_grad()
    def eval(self) -> None:
        """Evaluation mode: the parameters become the averages, x, until :meth:`train`."""
        self._enter(False)

    def _enter(self, train: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] == train:
                continue
            beta = pull(group)
            for p in group["params"]:
                state = self.state.get(p, {})
                if "z" in state:
                    moved(p, state, 1 - beta if train else 1 - 1 / beta)
            group["train_mode"] = train

    def _refuse_in_eval_mode(self, what: str) -> None:
        if not all(group["train_mode"] for group in self.param_groups):
            name = type(self).__name__
            raise RuntimeError(
                f"{name}.{what}: the parameters hold their averages, since {name}.eval(); call "
                "train() before the next step. No parameter was changed"
            )


def pull(group: dict[str, Any]) -> float:
    """How far the point of the gradient is drawn from z to the average."""
    return group["momentum"] if "momentum" in group else group["betas"][0]  # type: ignore[no-any-return]


def moved(p: Tensor, state: dict[str, Any], weight: float) -> None:
    """Interpolate a parameter with z; one that has a correction with it."""
    whole, z = precision.weight(p, state), state["z"]
    if whole.dtype == z.dtype and precision.LOW not in state:
        p.lerp_(z, weight)
        return
    wide = torch.promote_types(whole.dtype, z.dtype)
    precision.set_weight(p, state, whole.to(wide).lerp(z.to(wide), weight))


def averaged(group: dict[str, Any], state: dict[str, Tensor]) -> tuple[float, float]:
    """The learning rate of a step and the weight with which z goes into the average."""
    step, lr = counted(state), group["lr"]
    lr_max, weight_sum = state["lr_max"], state["weight_sum"]
    if step - 1 < group["warmup_steps"]:
        lr = lr * (step / group["warmup_steps"])
    lr_max.copy_(lr_max.maximum(torch.full_like(lr_max, lr)))
    weight = step ** group["r"] * lr_max.item() ** group["weight_lr_power"]
    added = torch.full_like(weight_sum, weight)
    total = weight_sum.add_(added).item()
    return lr, added.item() / total if total != 0 else 0.0


class SGDForLoop(Averaging):
    """The path of what the engine does not take: see :class:`SGDScheduleFree`."""

    _given: ClassVar[dict[str, Any]] = {
        "lr": 1.0,
        "momentum": 0.9,
        "weight_decay": 0,
        "warmup_steps": 0,
        "r": 0.0,
        "weight_lr_power": 2.0,
    }

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("z",)

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        (lr, part), z = averaged(group, state), state["z"]
        if group["weight_decay"] != 0:
            g = g.add(p, alpha=group["weight_decay"])
        p.lerp_(z, part).add_(g, alpha=lr * (group["momentum"] * (1 - part) - 1))
        z.add_(g, alpha=-lr)


class AdamWForLoop(Averaging):
    """The path of what the engine does not take: see :class:`AdamWScheduleFree`."""

    _given: ClassVar[dict[str, Any]] = {
        "lr": 0.0025,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0,
        "warmup_steps": 0,
        "r": 0.0,
        "weight_lr_power": 2.0,
    }

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "z", "exp_avg_sq"

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        (lr, part), z, v = averaged(group, state), state["z"], state["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = math.sqrt(1 - beta2 ** state["step"].item())
        update = g / (v.sqrt() / root).add_(group["eps"])
        if group["weight_decay"] != 0:
            update = update.add(p, alpha=group["weight_decay"])
        p.lerp_(z, part).add_(update, alpha=lr * (beta1 * (1 - part) - 1))
        z.add_(update, alpha=-lr)


class ScheduleFreeStep(FusedStep):
    """fastopt's step in training mode alone, and its record kept when the mode changes."""

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        self._refuse_in_eval_mode("step()")  # type: ignore[attr-defined]
        return super()._step(closure)

    _hooked_step = torch.optim.Optimizer.profile_hook_step(_step)  # type: ignore[arg-type]

    @contextmanager
    def step_in_backward(self, module: torch.nn.Module | None = None) -> Iterator[None]:
        self._refuse_in_eval_mode("step_in_backward()")  # type: ignore[attr-defined]
        with super().step_in_backward(module):
            yield

    step_in_backward.__doc__ = FusedStep.step_in_backward.__doc__

    def _enter(self, train: bool) -> None:
        self._refuse_inside_swap("train()" if train else "eval()")
        record = self._record
        record.drop_stale_corrections(self.state)
        super()._enter(train)  # type: ignore[misc]
        record.corrected.update({p: version(p) for p in record.corrected})


class SGDScheduleFree(ScheduleFreeStep, SGDForLoop):
    r"""Schedule-free SGD: a weighted average of all steps in place of a schedule.

    The parameter holds y, at which gradients are taken; beside it stands z, which steps; x, their
    average, is what the training is for. With gradient g at y (negated if `maximize`), step t::

        s = lr * min(1, t / warmup_steps)
        w = t**r * (the largest s so far)**weight_lr_power
        c = w / (the sum of all w so far)
        g = g + weight_decay * y
        z = z - s * g
        x = (1 - c) * x + c * z
        y = (1 - momentum) * z + momentum * x

    x is not kept: what this comes to for y is computed, with the z before the step::

        y = (1 - c) * y + c * z - s * (1 - momentum * (1 - c)) * g

    Call :meth:`eval` before the model is evaluated or saved, which makes the parameters x, and
    :meth:`train` before the next step. A new optimizer is in training mode.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 1.0).
        momentum (float): how far y is from z to x, between 0 and 1 (default: 0.9).
        weight_decay (float): L2 penalty at y (default: 0).
        warmup_steps (int): steps until the learning rate, which grows in a line, is lr
            (default: 0).
        r (float): power of the step in the weight of the average (default: 0.0).
        weight_lr_power (float): power of the learning rate in it (default: 2.0).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`. z is
            float32 whatever `state_bits` says.

    State per parameter: `step`, `lr_max` (the largest s) and `weight_sum` (0-d), and `z`, like the
    parameter. The mode is `train_mode` in the param groups, and goes into checkpoints with them.

    Raises:
        ValueError: a hyperparameter is out of range.
        RuntimeError: a step in evaluation mode.

    Source: A. Defazio et al., "The road less scheduled" (2024).
    """

    _rule = "sgd_schedulefree"
    _arguments = FUSED | OWN


class AdamWScheduleFree(ScheduleFreeStep, AdamWForLoop):
    r"""Schedule-free AdamW: a weighted average of all steps in place of a schedule and of momentum.

    The parameter holds y, at which gradients are taken; beside it stands z, which steps; x, their
    average, is what the training is for. With gradient g at y (negated if `maximize`), step t::

        s = lr * min(1, t / warmup_steps)
        w = t**r * (the largest s so far)**weight_lr_power
        c = w / (the sum of all w so far)
        v = beta2 * v + (1 - beta2) * g * g
        u = g / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * y
        z = z - s * u
        x = (1 - c) * x + c * z
        y = (1 - beta1) * z + beta1 * x

    x is not kept: what this comes to for y is computed, with the z before the step::

        y = (1 - c) * y + c * z - s * (1 - beta1 * (1 - c)) * u

    Call :meth:`eval` before the model is evaluated or saved, which makes the parameters x, and
    :meth:`train` before the next step. A new optimizer is in training mode.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): learning rate (default: 0.0025).
        betas (tuple of float): how far y is from z to x, above 0, and the decay rate of v
            (default: (0.9, 0.999)).
        eps (float): added to the denominator (default: 1e-8).
        weight_decay (float): decoupled weight decay coefficient, at y (default: 0).
        warmup_steps (int): steps until the learning rate, which grows in a line, is lr
            (default: 0).
        r (float): power of the step in the weight of the average (default: 0.0).
        weight_lr_power (float): power of the learning rate in it (default: 2.0).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`. z is
            float32 whatever `state_bits` says.

    State per parameter: `step`, `lr_max` (the largest s) and `weight_sum` (0-d), `z` and
    `exp_avg_sq`, like the parameter. The mode is `train_mode` in the param groups, and goes into
    checkpoints with them.

    Raises:
        ValueError: a hyperparameter is out of range.
        RuntimeError: a step in evaluation mode.

    Source: A. Defazio et al., "The road less scheduled" (2024).
    """

    _rule = "adamw_schedulefree"
    _arguments = FUSED | OWN
