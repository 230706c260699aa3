"""AdEMAMix: its for-loop in torch's operations, as torch has no such class, then fastopt's step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from ..arguments import FUSED, OWN
from ._fused import FusedStep
from ._loop import Loop, counted


class ForLoop(Loop):
    """The path of what the engine does not take: see :class:`AdEMAMix`."""

    _numbers: ClassVar[dict[str, float]] = {"step": 0.0}
    _given: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999, 0.9999),
        "alpha": 2.0,
        "beta3_warmup": None,
        "alpha_warmup": None,
        "eps": 1e-8,
        "weight_decay": 0,
    }

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return "exp_avg_fast", "exp_avg_slow", "exp_avg_sq"

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        lr, (beta1, beta2, _), step = group["lr"], group["betas"], counted(state)
        fast, slow, v = (state[name] for name in self._states(group))
        p.mul_(1 - lr * group["weight_decay"])
        fast.lerp_(g, 1 - beta1)
        slow.lerp_(g, 1 - beta3_of(group, step))
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denom = (v.sqrt() / math.sqrt(1 - beta2**step)).add_(group["eps"])
        mixed = (fast * (lr / (1 - beta1**step))).add_(slow, alpha=lr * alpha_of(group, step))
        p.sub_(mixed / denom)


def alpha_of(group: dict[str, Any], step: float) -> float:
    """The weight of the slow average, which grows from 0 in a line."""
    part = step / group["alpha_warmup"] if step < (group["alpha_warmup"] or 0) else 1.0
    return part * group["alpha"]  # type: ignore[no-any-return]


def beta3_of(group: dict[str, Any], step: float) -> float:
    """The decay of the slow average, whose half-life grows in a line, from the fast one's."""
    beta1, _, beta3 = group["betas"]
    if not step < (group["beta3_warmup"] or 0):
        return beta3  # type: ignore[no-any-return]
    part = step / group["beta3_warmup"]
    begin, end = (math.log(0.5) / math.log(beta + 1e-8) - 1 for beta in (beta1, beta3))
    return math.pow(0.5, 1 / ((1 - part) * begin + part * end + 1))


class AdEMAMix(FusedStep, ForLoop):
    r"""AdEMAMix: Adam with a second, slow average of the gradient.

    With gradient g (negated if `maximize`), parameter p, averages m1 and m2, moment v, step t::

        p = p * (1 - lr * weight_decay)
        m1 = beta1 * m1 + (1 - beta1) * g
        m2 = beta3(t) * m2 + (1 - beta3(t)) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m1 / (1 - beta1**t) + alpha(t) * m2) / (sqrt(v / (1 - beta2**t)) + eps)

    While t < `alpha_warmup`, alpha(t) is alpha * t / alpha_warmup, then alpha. While t <
    `beta3_warmup`, the half-life of beta3(t) grows in a line from beta1's to beta3's, which it
    then is: with f(b) = log(1/2) / log(b + 1e-8) - 1 and a = t / beta3_warmup::

        beta3(t) = 0.5**(1 / ((1 - a) * f(beta1) + a * f(beta3) + 1))

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): learning rate (default: 1e-3).
        betas (tuple of float): decay rates of the fast average, of the squares and of the slow
            average (default: (0.9, 0.999, 0.9999)).
        alpha (float): weight of the slow average (default: 2.0, as in the authors' code; the paper
            trains with 5 to 10).
        beta3_warmup, alpha_warmup (int, optional): steps until beta3 and alpha are what they are
            given as; the paper takes the number of all steps for both (default: None, from the
            first on).
        eps (float): added to the denominator (default: 1e-8).
        weight_decay (float): decoupled weight decay coefficient (default: 0).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`. The slow
            average is float32 whatever `state_bits` says.

    State per parameter: `step` (0-d), `exp_avg_fast`, `exp_avg_slow` and `exp_avg_sq`, like the
    parameter.

    Raises:
        ValueError: a hyperparameter is out of range.

    Source: M. Pagliardini, P. Ablin and D. Grangier, "The AdEMAMix optimizer: better, faster,
    older" (2024).
    """

    _rule = "ademamix"
    _arguments = FUSED | OWN
