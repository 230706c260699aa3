"""NAdam: torch's class with the `fused` argument that torch's lacks, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import FUSED, OWN
from ._fused import FusedStep


class NAdam(FusedStep, torch.optim.NAdam):
    r"""NAdam, a drop-in for `torch.optim.NAdam`.

    With gradient g (negated if `maximize`), parameter p, moments m and v, step t, momentum mu(t),
    the product M of all momenta so far::

        g = g + weight_decay * p                     (p = p * (1 - lr * weight_decay) if decoupled)
        mu(t) = beta1 * (1 - 0.96**(t * momentum_decay) / 2)
        M = M * mu(t)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        d = sqrt(v / (1 - beta2**t)) + eps
        p = p - lr * (1 - mu(t)) / (1 - M) * g / d
        p = p - lr * mu(t + 1) / (1 - M * mu(t + 1)) * m / d

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 2e-3).
        betas (tuple of float): decay rates of the two moments (default: (0.9, 0.999)).
        eps (float): added to the denominator (default: 1e-8).
        weight_decay (float): L2 penalty (default: 0).
        momentum_decay (float): how fast the momentum grows to beta1 (default: 4e-3).
        decoupled_weight_decay (bool): shrink the parameter instead, as AdamW does (default: False).
        maximize (bool): ascend instead of descending (default: False).
        foreach (bool, optional): accepted as torch accepts it; the step is always fused.
        fused (bool, optional): as for torch's other optimizers; accepted, the step is always fused.
        capturable, differentiable (bool): take torch's own step (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `step` and `mu_product`, M (0-d), `exp_avg` and `exp_avg_sq`, like the
    parameter.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.
        RuntimeError: `fused` together with `foreach` or `differentiable`, or, in the first step, on
            a device where torch has no fused kernels and no backend of ours either.

    Source: T. Dozat, "Incorporating Nesterov momentum into Adam" (2016); I. Loshchilov and
    F. Hutter, "Decoupled weight decay regularization" (2019); in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.NAdam.html.
    """

    _rule = "nadam"
    _arguments = FUSED | OWN
