"""LARS: its for-loop in torch's operations, as torch has no such class, then fastopt's step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..arguments import FUSED, OWN
from ._fused import FusedStep
from ._loop import Loop, norm


class ForLoop(Loop):
    """The path of what the engine does not take: see :class:`LARS`."""

    _given: ClassVar[dict[str, Any]] = {
        "lr": 1.0,
        "momentum": 0.9,
        "weight_decay": 0,
        "nesterov": False,
        "trust_coefficient": 1e-3,
        "eps": 0,
        "always_adapt": True,
    }

    def _check(self, defaults: dict[str, Any]) -> None:
        if defaults["nesterov"] and not defaults["momentum"] > 0:
            raise ValueError("Nesterov momentum requires a momentum")
        super()._check(defaults)

    def _states(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _update(
        self, group: dict[str, Any], p: Tensor, g: Tensor, state: dict[str, Tensor]
    ) -> None:
        rate, weight_decay, momentum = group["lr"], group["weight_decay"], group["momentum"]
        if weight_decay != 0 or group["always_adapt"]:
            length, of = norm(p), norm(g)
            ratio = group["trust_coefficient"] * length
            ratio = ratio / (of + weight_decay * length + group["eps"])
            rate = rate * torch.where((length > 0) & (of > 0), ratio, 1.0)
        rate = torch.as_tensor(rate, dtype=p.dtype, device=p.device)
        if weight_decay != 0:
            g = g.add(p, alpha=weight_decay)
        if momentum == 0:
            p.addcmul_(g, -rate)
            return
        buffer = state["momentum_buffer"].mul_(momentum).addcmul_(g, rate)
        p.sub_((buffer * momentum).addcmul_(g, rate) if group["nesterov"] else buffer)


class LARS(FusedStep, ForLoop):
    r"""LARS: SGD with momentum, whose learning rate of each tensor goes by the tensor's length.

    With gradient g (negated if `maximize`), parameter p, momentum buffer b, and norms over the
    whole of a parameter::

        r = lr * trust_coefficient * ||p|| / (||g|| + weight_decay * ||p|| + eps)
                                             (lr where one of both norms is 0)
        b = momentum * b + r * (g + weight_decay * p)
        p = p - b                            (- momentum * b - r * (g + ...) if nesterov)

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): global learning rate (default: 1.0).
        momentum (float): momentum factor, at least 0 (default: 0.9).
        weight_decay (float): L2 penalty (default: 0).
        nesterov (bool): Nesterov's momentum; requires a momentum (default: False).
        trust_coefficient (float): how far a step may move a tensor, of its length (default: 1e-3).
        eps (float): added to the denominator of the ratio (default: 0).
        always_adapt (bool): False leaves groups without weight decay, such as biases and norms, at
            SGD's rate (default: True, as in the paper).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): as for torch's optimizers; the step is always fused.
        differentiable (bool): let autograd through the step; takes a for-loop of torch's operations
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    A DTensor's norms go over all of its parts. Of FSDP1's flat parameters, which are no whole
    tensors, they would not, of which a warning tells: shard with FSDP2.

    State per parameter: `momentum_buffer`, like the parameter, if momentum != 0.

    Raises:
        ValueError: a hyperparameter is out of range.

    Source: Y. You, I. Gitman and B. Ginsburg, "Large batch training of convolutional networks"
    (2017), algorithm 1.
    """

    _rule = "lars"
    _arguments = FUSED | OWN
