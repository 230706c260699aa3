"""Adadelta: torch's class with the `fused` argument that torch's lacks, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import FUSED, OWN
from ._fused import FusedStep


class Adadelta(FusedStep, torch.optim.Adadelta):
    r"""Adadelta, a drop-in for `torch.optim.Adadelta`.

    With gradient g (negated if `maximize`), parameter p, averages of squares v and u::

        g = g + weight_decay * p
        v = rho * v + (1 - rho) * g * g
        d = sqrt(u + eps) / sqrt(v + eps) * g
        u = rho * u + (1 - rho) * d * d
        p = p - lr * d

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): what the change d is multiplied by (default: 1.0).
        rho (float): decay rate of the averages (default: 0.9).
        eps (float): added under both roots (default: 1e-6).
        weight_decay (float): L2 penalty (default: 0).
        maximize (bool): ascend instead of descending (default: False).
        foreach (bool, optional): accepted as torch accepts it; the step is always fused.
        fused (bool, optional): as for torch's other optimizers; accepted, the step is always fused.
        capturable, differentiable (bool): take torch's own step (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: `step` (0-d), `square_avg` and `acc_delta`, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.
        RuntimeError: `fused` together with `foreach` or `differentiable`, or, in the first step, on
            a device where torch has no fused kernels and no backend of ours either.

    Source: M. D. Zeiler, "ADADELTA: an adaptive learning rate method" (2012), in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Adadelta.html.
    """

    _rule = "adadelta"
    _arguments = FUSED | OWN
