"""Adagrad: torch's class, fastopt's step."""

from __future__ import annotations

from typing import Any

import torch

from ._fused import FusedStep


class Adagrad(FusedStep, torch.optim.Adagrad):
    r"""Adagrad, a drop-in for `torch.optim.Adagrad`.

    With gradient g (negated if `maximize`), parameter p, sum of squares s, step t::

        g = g + weight_decay * p
        s = s + g * g
        p = p - lr / (1 + (t - 1) * lr_decay) * g / (sqrt(s) + eps)

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 1e-2).
        lr_decay (float): learning rate decay (default: 0).
        weight_decay (float): L2 penalty (default: 0).
        initial_accumulator_value (float): what the sum of squares begins as (default: 0).
        eps (float): added to the denominator (default: 1e-10).
        maximize (bool): ascend instead of descending (default: False).
        foreach, fused (bool, optional): accepted as torch accepts them; the step is always fused.
        differentiable (bool): let autograd through the step; takes torch's own step
            (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter, made with the optimizer as torch makes it: `step` (0-d) and `sum`, like the
    parameter. Sparse gradients take torch's own step.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.

    Source: J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization" (2011), in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Adagrad.html.
    """

    _rule = "adagrad"

    def state_dict(self) -> dict[str, Any]:
        # Its sums are there from the start, which keeps torch.distributed.checkpoint from asking
        # for the states that come beside them.
        if not any(state["step"] for state in self.state.values() if "step" in state):
            self._make_states()
        return super().state_dict()

    state_dict.__doc__ = torch.optim.Optimizer.state_dict.__doc__
