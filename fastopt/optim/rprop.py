"""Rprop: torch's class with the `fused` argument that torch's lacks, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import FUSED, OWN
from ._fused import FusedStep


class Rprop(FusedStep, torch.optim.Rprop):
    r"""Rprop, a drop-in for `torch.optim.Rprop`.

    With gradient g (negated if `maximize`), that of the step before g', parameter p, step sizes d,
    each element by itself::

        d = min(max(d * etas[1], step_sizes[0]), step_sizes[1])            where g * g' > 0
        d = min(max(d * etas[0], step_sizes[0]), step_sizes[1]); g = 0     where g * g' < 0
        p = p - d * sign(g)
        g' = g

    It is for gradients of whole data sets: what noise turns the sign of shrinks the step.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128 (real and imaginary parts
            by themselves).
        lr (float or Tensor): what the step sizes begin as (default: 1e-2).
        etas (tuple of float): factors of a step size that shrinks and of one that grows
            (default: (0.5, 1.2)).
        step_sizes (tuple of float): the smallest and the largest step size (default: (1e-6, 50)).
        maximize (bool): ascend instead of descending (default: False).
        foreach (bool, optional): accepted as torch accepts it; the step is always fused.
        fused (bool, optional): as for torch's other optimizers; accepted, the step is always fused.
        capturable, differentiable (bool): take torch's own step (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`. Step sizes
            are float32 whatever `state_bits` says.

    State per parameter: `step` (0-d), `prev`, g', and `step_size`, d, like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.
        RuntimeError: `fused` together with `foreach` or `differentiable`, or, in the first step, on
            a device where torch has no fused kernels and no backend of ours either.

    Source: M. Riedmiller and H. Braun, "A direct adaptive method for faster backpropagation
    learning: the RPROP algorithm" (1993), in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Rprop.html.
    """

    _rule = "rprop"
    _arguments = FUSED | OWN
