"""SGD: torch's class, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import DECOUPLED_WEIGHT_DECAY, OWN
from ._fused import FusedStep


class SGD(FusedStep, torch.optim.SGD):
    r"""Stochastic gradient descent, optionally with momentum: a drop-in for `torch.optim.SGD`.

    With gradient g (negated if `maximize`), parameter p, momentum buffer b, step t::

        g = g + weight_decay * p                 (p = p * (1 - lr * weight_decay) if decoupled)
        b = g                                    at the first step, then
        b = momentum * b + (1 - dampening) * g   (only if momentum != 0)
        g = g + momentum * b if nesterov else b
        p = p - lr * g

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 1e-3).
        momentum (float): momentum factor (default: 0).
        dampening (float): dampening for momentum (default: 0).
        weight_decay (float or Tensor): L2 penalty (default: 0).
        nesterov (bool): Nesterov momentum (default: False).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): accepted as torch accepts them; the step is always fused.
        differentiable (bool): let autograd through the step; takes torch's own step
            (default: False).
        decoupled_weight_decay (bool): shrink the parameter instead, as AdamW does (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `momentum_buffer`, like the first gradient; absent without momentum.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.

    Source: I. Sutskever et al., "On the importance of initialization and momentum in deep learning"
    (2013), in the form of https://docs.pytorch.org/docs/stable/generated/torch.optim.SGD.html.
    In float32 and float64 the results are those of torch's for-loop, bit for bit, where torch's
    kernels have fused multiply-adds (docs/numerics.md).
    """

    _rule = "sgd"
    _arguments = DECOUPLED_WEIGHT_DECAY | OWN
