"""Adamax: torch's class with the `fused` argument that torch's lacks, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import FUSED, OWN
from ._fused import FusedStep


class Adamax(FusedStep, torch.optim.Adamax):
    r"""Adamax, a drop-in for `torch.optim.Adamax`.

    With gradient g (negated if `maximize`), parameter p, moment m, norm u, step t::

        g = g + weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        u = max(beta2 * u, abs(g) + eps)
        p = p - lr / (1 - beta1**t) * m / u

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 2e-3).
        betas (tuple of float): decay rates of m and u (default: (0.9, 0.999)).
        eps (float): added to the gradient's magnitude (default: 1e-8).
        weight_decay (float): L2 penalty (default: 0).
        maximize (bool): ascend instead of descending (default: False).
        foreach (bool, optional): accepted as torch accepts it; the step is always fused.
        fused (bool, optional): as for torch's other optimizers; accepted, the step is always fused.
        capturable, differentiable (bool): take torch's own step (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `step` (0-d), `exp_avg` and `exp_inf`, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.
        RuntimeError: `fused` together with `foreach` or `differentiable`, or, in the first step, on
            a device where torch has no fused kernels and no backend of ours either.

    Source: D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015), section
    7.1, in the form of https://docs.pytorch.org/docs/stable/generated/torch.optim.Adamax.html.
    """

    _rule = "adamax"
    _arguments = FUSED | OWN
