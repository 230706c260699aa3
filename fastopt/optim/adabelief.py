"""AdaBelief: its for-loop in torch's operations, as torch has no such class; fastopt's step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import FUSED, OWN
from ._fused import FusedStep
from ._loop import KEYWORDS, Loop, counted


class ForLoop(Loop):
    """The path of what the engine does not take: see :class:`AdaBelief`."""

    _numbers: ClassVar[dict[str, float]] = {"step": 0.0}
    _given: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-16,
        "weight_decay": 0,
        "amsgrad": False,
    }
    _keywords: ClassVar[dict[str, Any]] = {"decoupled_weight_decay": True} | KEYWORDS

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        names = ("exp_avg", "exp_avg_var")
        return (*names, "max_exp_avg_var") if group["amsgrad"] else names

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        lr, (beta1, beta2), eps = group["lr"], group["betas"], group["eps"]
        step, m, s = counted(state), state["exp_avg"], state["exp_avg_var"]
        if group["decoupled_weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        elif group["weight_decay"] != 0:
            g = g.add(p, alpha=group["weight_decay"])
        m.lerp_(g, 1 - beta1)
        rest = g - m
        s.mul_(beta2).addcmul_(rest, rest, value=1 - beta2).add_(eps)
        if group["amsgrad"]:
            s = state["max_exp_avg_var"].copy_(torch.maximum(state["max_exp_avg_var"], s))
        denom = (s.sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
        p.addcdiv_(m, denom, value=-lr / (1 - beta1**step))


class AdaBelief(FusedStep, ForLoop):
    r"""AdaBelief: Adam that divides by how far gradients are from their average.

    With gradient g (negated if `maximize`), parameter p, moments m and s, step t::

        p = p * (1 - lr * weight_decay)              (g = g + weight_decay * p if not decoupled)
        m = beta1 * m + (1 - beta1) * g
        s = beta2 * s + (1 - beta2) * (g - m)**2 + eps
        p = p - lr / (1 - beta1**t) * m / (sqrt(s / (1 - beta2**t)) + eps)

    With `amsgrad`, the maximum of all s so far is in the place of s in the last line. It is the
    form without rectification, `rectify=False` in the authors' code.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): learning rate (default: 1e-3).
        betas (tuple of float): decay rates of the two moments (default: (0.9, 0.999)).
        eps (float): added to s in every step, and to the denominator (default: 1e-16).
        weight_decay (float): weight decay coefficient (default: 0).
        amsgrad (bool): divide by the maximum of all s (default: False).
        decoupled_weight_decay (bool): shrink the parameter, as AdamW does, rather than add an L2
            penalty to the gradient; `weight_decouple` in the authors' code (default: True).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `step` (0-d), `exp_avg`, `exp_avg_var` and, with `amsgrad`,
    `max_exp_avg_var`, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range.

    Source: J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed
    gradients" (2020).
    """

    _rule = "adabelief"
    _arguments = FUSED | OWN
