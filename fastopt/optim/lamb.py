"""LAMB: its for-loop in torch's operations, as torch has no such class, then fastopt's step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import FUSED, OWN
from ._fused import FusedStep
from ._loop import Loop, counted, norm


class ForLoop(Loop):
    """The path of what the engine does not take: see :class:`LAMB`."""

    _numbers: ClassVar[dict[str, float]] = {"step": 0.0}
    _given: ClassVar[dict[str, Any]] = {
        "lr": 1e-3,
        "betas": (0.9, 0.999),
        "eps": 1e-6,
        "weight_decay": 0,
        "bias_correction": True,
        "always_adapt": True,
    }

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        (beta1, beta2), weight_decay = group["betas"], group["weight_decay"]
        step = counted(state)
        correction1 = correction2 = 1.0
        if group["bias_correction"]:
            correction1, correction2 = 1 - beta1**step, 1 - beta2**step
        m = state["exp_avg"].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        update = m.mul(1 / correction1).div_(v.sqrt().div_(correction2**0.5).add_(group["eps"]))
        if weight_decay != 0:
            update = update.add(p, alpha=weight_decay)
        if weight_decay != 0 or group["always_adapt"]:
            length, of = norm(p), norm(update)
            update = update * torch.where((length > 0) & (of > 0), length / of, 1.0)
        p.add_(update, alpha=-group["lr"])


class LAMB(FusedStep, ForLoop):
    r"""LAMB: Adam's update of each tensor, made as long as the tensor itself.

    With gradient g (negated if `maximize`), parameter p, moments m and v, step t, and norms over
    the whole of a parameter::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        u = m / (1 - beta1**t) / (sqrt(v) / sqrt(1 - beta2**t) + eps) + weight_decay * p
        p = p - lr * ||p|| / ||u|| * u       (p - lr * u where one of both norms is 0)

    So every tensor moves by lr of its length a step, which holds for batches of thousands.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): learning rate, the ratio of a step to its tensor (default: 1e-3).
        betas (tuple of float): decay rates of the two moments (default: (0.9, 0.999)).
        eps (float): added to the denominator (default: 1e-6).
        weight_decay (float): decay, added to the update before its norm is taken (default: 0).
        bias_correction (bool): divide the moments by 1 - beta**t (default: True).
        always_adapt (bool): False leaves groups without weight decay, such as biases and norms, at
            Adam's update (default: True, as in the paper).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    A DTensor's norms go over all of its parts. Of FSDP1's flat parameters, which are no whole
    tensors, they would not, of which a warning tells: shard with FSDP2.

    State per parameter: `step` (0-d), `exp_avg` and `exp_avg_sq`, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range.

    Source: Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes"
    (2020), algorithm 2, with phi the identity.
    """

    _rule = "lamb"
    _arguments = FUSED | OWN
