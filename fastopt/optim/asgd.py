"""ASGD: torch's class with the `fused` argument that torch's lacks, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import FUSED, OWN
from ._fused import FusedStep


class ASGD(FusedStep, torch.optim.ASGD):
    r"""ASGD, averaged stochastic gradient descent, a drop-in for `torch.optim.ASGD`.

    With gradient g (negated if `maximize`), parameter p, average of the parameters ax, step t::

        g = g + weight_decay * p
        p = p * (1 - lambd * eta)
        p = p - eta * g
        ax = ax + mu * (p - ax)
        eta = lr / (1 + lambd * lr * t)**alpha
        mu = 1 / max(1, t - t0)

    A step uses the `eta` and `mu` that the one before has left, the first one lr and 1.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 1e-2).
        lambd (float): decay of the parameter and of the learning rate (default: 1e-4).
        alpha (float): power by which the learning rate decays (default: 0.75).
        t0 (float): the step after which the average begins; until then it is the parameter
            (default: 1e6).
        weight_decay (float): L2 penalty (default: 0).
        maximize (bool): ascend instead of descending (default: False).
        foreach (bool, optional): accepted as torch accepts it; the step is always fused.
        fused (bool, optional): as for torch's other optimizers; accepted, the step is always fused.
        capturable, differentiable (bool): take torch's own step (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`. The average
            is float32 whatever `state_bits` says.

    State per parameter: `step`, `eta` and `mu` (0-d), `ax`, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.
        RuntimeError: `fused` together with `foreach` or `differentiable`, or, in the first step, on
            a device where torch has no fused kernels and no backend of ours either.

    Source: B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging"
    (1992); L. Bottou, "Stochastic gradient descent tricks" (2012); in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.ASGD.html.
    """

    _rule = "asgd"
    _arguments = FUSED | OWN
