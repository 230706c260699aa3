"""RMSprop: torch's class with the `fused` argument that torch's lacks, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import DECOUPLED_WEIGHT_DECAY, EPS_IN_SQRT, FUSED, OWN
from ._fused import FusedStep


class RMSprop(FusedStep, torch.optim.RMSprop):
    r"""RMSprop, a drop-in for `torch.optim.RMSprop`.

    With gradient g (negated if `maximize`), parameter p, running averages v and a, buffer b::

        g = g + weight_decay * p                 (p = p * (1 - lr * weight_decay) if decoupled)
        v = alpha * v + (1 - alpha) * g * g
        a = alpha * a + (1 - alpha) * g                   (only if centered)
        d = sqrt(v - a * a if centered else v) + eps      (sqrt(... + eps) if eps_in_sqrt)
        b = momentum * b + g / d; p = p - lr * b          (if momentum > 0)
        p = p - lr * g / d                                (otherwise)

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 1e-2).
        alpha (float): decay rate of the running averages (default: 0.99).
        eps (float): added to the denominator (default: 1e-8).
        weight_decay (float): L2 penalty (default: 0).
        momentum (float): momentum factor (default: 0).
        centered (bool): normalise by an estimate of the gradient's variance (default: False).
        maximize (bool): ascend instead of descending (default: False).
        foreach (bool, optional): accepted as torch accepts it; the step is always fused.
        fused (bool, optional): as for torch's other optimizers; accepted, the step is always fused.
        capturable, differentiable (bool): take torch's own step (default: False).
        decoupled_weight_decay (bool): shrink the parameter instead, as AdamW does (default: False).
        eps_in_sqrt (bool): eps under the root, as TensorFlow's RMSprop has it (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `step` (0-d), `square_avg`, `momentum_buffer` if momentum > 0 and
    `grad_avg` if centered, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.
        RuntimeError: `fused` together with `foreach` or `differentiable`, or, in the first step, on
            a device where torch has no fused kernels and no backend of ours either.

    Source: G. Hinton, lecture 6e of "Neural networks for machine learning" (2012); centered:
    A. Graves, "Generating sequences with recurrent neural networks" (2013); in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.RMSprop.html.
    """

    _rule = "rmsprop"
    _arguments = FUSED | DECOUPLED_WEIGHT_DECAY | EPS_IN_SQRT | OWN
