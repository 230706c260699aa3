"""Adan: its for-loop in torch's operations, as torch has no such class, then fastopt's step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import FUSED, OWN
from ._fused import FusedStep
from ._loop import Loop, counted


class ForLoop(Loop):
    """The path of what the engine does not take: see :class:`Adan`."""

    _numbers: ClassVar[dict[str, float]] = {"step": 0.0}
    _given: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.98, 0.92, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.0,
        "no_prox": False,
    }

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg", "exp_avg_sq", "exp_avg_diff", "neg_pre_grad"

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        lr, (beta1, beta2, beta3), step = group["lr"], group["betas"], counted(state)
        m, n, d, negative = (state[name] for name in self._states(group))
        decay = lr * group["weight_decay"]
        diff = torch.zeros_like(g) if step == 1 else g + negative
        m.lerp_(g, 1 - beta1)
        d.lerp_(diff, 1 - beta2)
        ahead = g.add(diff, alpha=beta2)
        n.mul_(beta3).addcmul_(ahead, ahead, value=1 - beta3)
        denom = (n.sqrt() / math.sqrt(1 - beta3**step)).add_(group["eps"])
        size, diff_size = lr / (1 - beta1**step), lr * beta2 / (1 - beta2**step)
        if group["no_prox"]:
            p.mul_(1 - decay)
        p.sub_((m * size).add_(d, alpha=diff_size) / denom)
        if not group["no_prox"]:
            p.mul_(1 / (1 + decay))
        negative.copy_(-g)


class Adan(FusedStep, ForLoop):
    r"""Adan: Adam with Nesterov's momentum, by the difference between two gradients.

    With gradient g (negated if `maximize`), the one before it h, parameter p, moments m, d and n,
    step t::

        m = beta1 * m + (1 - beta1) * g
        d = beta2 * d + (1 - beta2) * (g - h)        (g - h is 0 in the first step)
        n = beta3 * n + (1 - beta3) * (g + beta2 * (g - h))**2
        u = m / (1 - beta1**t) + beta2 * d / (1 - beta2**t)
        p = p - lr * u / (sqrt(n / (1 - beta3**t)) + eps)
        p = p / (1 + lr * weight_decay)

    With `no_prox`, p is multiplied by 1 - lr * weight_decay first, in place of the last line.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): learning rate (default: 1e-3).
        betas (tuple of float): decay rates of the averages of gradients, differences and squares,
            each 1 less the paper's (default: (0.98, 0.92, 0.99)).
        eps (float): added to the denominator (default: 1e-8).
        weight_decay (float): decoupled weight decay coefficient (default: 0.0).
        no_prox (bool): decay as AdamW does (default: False).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `step` (0-d), `exp_avg`, `exp_avg_sq`, `exp_avg_diff` and `neg_pre_grad`,
    which is -g, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range.

    Source: X. Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep
    models" (2022).
    """

    _rule = "adan"
    _arguments = FUSED | OWN
