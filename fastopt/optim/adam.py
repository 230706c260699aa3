"""Adam and AdamW: torch's classes, fastopt's step."""

from __future__ import annotations

import torch

from ._fused import FusedStep


class Adam(FusedStep, torch.optim.Adam):
    r"""Adam, a drop-in for `torch.optim.Adam`.

    With gradient g (negated if `maximize`), parameter p, moments m and v, step t::

        g = g + weight_decay * p                     (p = p * (1 - lr * weight_decay) if decoupled)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        v_max = max(v_max, v), used for v below      (only if amsgrad)
        p = p - lr / (1 - beta1**t) * m / (sqrt(v) / sqrt(1 - beta2**t) + eps)

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 1e-3).
        betas (tuple of float or Tensor): decay rates of the two moments (default: (0.9, 0.999)).
        eps (float): added to the denominator (default: 1e-8).
        weight_decay (float): L2 penalty (default: 0).
        amsgrad (bool): the AMSGrad variant (default: False).
        maximize (bool): ascend instead of descending (default: False).
        decoupled_weight_decay (bool): AdamW's weight decay (default: False).
        foreach, fused (bool, optional): accepted as torch accepts them; the step is always fused.
        capturable, differentiable (bool): take torch's own step (default: False).

    State per parameter: `step` (0-d), `exp_avg`, `exp_avg_sq` and, if amsgrad, `max_exp_avg_sq`,
    like the parameter.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.

    Source: D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015); S. Reddi,
    S. Kale and S. Kumar, "On the convergence of Adam and beyond" (2018); in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html.
    """

    _rule = "adam"


class AdamW(FusedStep, torch.optim.AdamW):
    r"""AdamW, a drop-in for `torch.optim.AdamW`: :class:`Adam` with decoupled weight decay.

    Each step first shrinks the parameter, p = p * (1 - lr * weight_decay), and then updates it as
    Adam does without weight decay.

    Args:
        weight_decay (float): decoupled weight decay coefficient (default: 1e-2).
        params, lr, betas, eps, amsgrad, maximize, foreach, capturable, differentiable, fused: as in
            :class:`Adam`.

    State and errors are :class:`Adam`'s.

    Source: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization" (2019), in the form
    of https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html.
    """

    _rule = "adam"
