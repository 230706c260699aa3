"""Lion: its for-loop in torch's operations, as torch has no such class, then fastopt's step."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ..arguments import FUSED, OWN
from ._fused import FusedStep
from ._loop import Loop


class ForLoop(Loop):
    """The path of what the engine does not take: see :class:`Lion`."""

    _given: ClassVar[dict[str, Any]] = {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0}

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg",)

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        lr, (beta1, beta2), m = group["lr"], group["betas"], state["exp_avg"]
        p.mul_(1 - lr * group["weight_decay"])
        p.add_(m.mul(beta1).add_(g, alpha=1 - beta1).sign_(), alpha=-lr)
        m.mul_(beta2).add_(g, alpha=1 - beta2)


class Lion(FusedStep, ForLoop):
    r"""Lion: the sign of an interpolated momentum, with decoupled weight decay.

    With gradient g (negated if `maximize`), parameter p, momentum m::

        p = p * (1 - lr * weight_decay)
        p = p - lr * sign(beta1 * m + (1 - beta1) * g)
        m = beta2 * m + (1 - beta2) * g

    Every number moves by lr: the paper advises a learning rate 3 to 10 times smaller than AdamW's,
    and a weight decay as many times larger.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): learning rate (default: 1e-4).
        betas (tuple of float): weights of the momentum in the update and in itself
            (default: (0.9, 0.99)).
        weight_decay (float): decoupled weight decay coefficient (default: 0).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `exp_avg`, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range.

    Source: X. Chen et al., "Symbolic discovery of optimization algorithms" (2023), algorithm 2.
    """

    _rule = "lion"
    _arguments = FUSED | OWN
