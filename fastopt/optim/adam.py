"""Adam and AdamW: torch's classes, fastopt's step."""

from __future__ import annotations

import torch

from ..arguments import EPS_IN_SQRT, OWN
from ._fused import FusedStep


class Adam(FusedStep, torch.optim.Adam):
    r"""Adam, a drop-in for `torch.optim.Adam`.

    With gradient g (negated if `maximize`), parameter p, moments m and v, step t::

        g = g + weight_decay * p                     (p = p * (1 - lr * weight_decay) if decoupled)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        v_max = max(v_max, v), used for v below      (only if amsgrad)
        d = sqrt(v) / sqrt(1 - beta2**t) + eps       (sqrt(v / (1 - beta2**t) + eps) if eps_in_sqrt)
        p = p - lr / (1 - beta1**t) * m / d

    The passes around the update happen in the same pass over memory, in this order: the gradient is
    unscaled (where GradScaler leaves that to us: see `fused`), clipped by norm, clipped by value,
    negated if `maximize`, `l1 * sign(p)` is added; then the update; then average, statistics,
    clearing. `p.grad` keeps what backward() left, but for GradScaler's factor.

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
            With `fused=True` it takes part in GradScaler's work, as torch's: unscales in its one
            pass, and is called where gradients overflow.
        capturable, differentiable (bool): take torch's own step (default: False).
        eps_in_sqrt (bool): eps under the root, sqrt(v + eps), instead of sqrt(v) + eps
            (default: False).
        max_grad_norm (float, optional): where the L2 norm of all gradients of all groups is more,
            multiply them by max_grad_norm / (norm + 1e-6), as `torch.nn.utils.clip_grad_norm_`
            does. :attr:`grad_norm` is the norm before that; `inf` only measures it (default: None).
        max_grad_value (float, optional): clip each gradient's elements to [-max_grad_value,
            max_grad_value], as `torch.nn.utils.clip_grad_value_` (default: None).
        skip_nonfinite (bool): where any gradient of any group has a NaN or an infinity, change
            nothing, and count the step in :attr:`skipped_steps` (default: False).
        l1 (float): L1 penalty, adds l1 * sign(p) to the gradient (default: 0).
        ema_decay (float, optional): keep an average of the weights, a = ema_decay * a +
            (1 - ema_decay) * p, which starts as the first updated p; see :meth:`ema_parameters`
            and :meth:`swap_ema` (default: None).
        clear_grads (bool): fill the gradients with zeros, in a skipped step too, for which
            GradScaler calls it as with `fused=True`; for gradient buffers that stay where they are
            (default: False).
        track_stats (bool): measure each parameter's gradient, update and weight for :meth:`stats`
            (default: False).
        state_bits (int, optional): what states are kept in: 32, float32; 16, bfloat16; 8, codes of
            a byte with a scale for each 64 of them, for tensors of at least `min_8bit_size`
            elements whose rows are multiples of 64, else float32. None: the parameter's dtype
            (default: None).
        min_8bit_size (int): elements from which on 8 bits apply (default: 4096).
        master_weight_bits (int, optional): of a bfloat16 or float16 parameter 32 or 24: a state
            `master_low` keeps what its 16 bits lack of so many; None: nothing does (default: None).
        stochastic_rounding (bool): round a 16-bit parameter without it by noise (default: False).
        norm_group (ProcessGroup, optional): processes over which norm and finiteness of gradients
            go beside those that DTensors tell, see :attr:`norm_group` (default: None).
        rounding_seed (int): of the noise that states and parameters are rounded by, a function of
            it, the step, the parameter's place and the element (default: 0).

    State per parameter: `step` (0-d), `exp_avg`, `exp_avg_sq` and, if amsgrad, `max_exp_avg_sq`,
    like the parameter; with `ema_decay`, `ema`, like the parameter. In 8 bits `exp_avg` is two
    tensors of uint8, `exp_avg_codes` and `exp_avg_scale`; `master_low` is int8 or int16.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch, or a format does not suit.

    Source: D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization" (2015); S. Reddi,
    S. Kale and S. Kumar, "On the convergence of Adam and beyond" (2018); in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Adam.html.
    """

    _rule = "adam"
    _arguments = EPS_IN_SQRT | OWN


class AdamW(FusedStep, torch.optim.AdamW):
    r"""AdamW, a drop-in for `torch.optim.AdamW`: :class:`Adam` with decoupled weight decay.

    With gradient g (negated if `maximize`), parameter p, moments m and v, step t::

        p = p * (1 - lr * weight_decay)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        v_max = max(v_max, v), used for v below      (only if amsgrad)
        d = sqrt(v) / sqrt(1 - beta2**t) + eps       (sqrt(v / (1 - beta2**t) + eps) if eps_in_sqrt)
        p = p - lr / (1 - beta1**t) * m / d

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape and layout,
            float32, float64, bfloat16, float16, complex64 or complex128.
        lr (float or Tensor): learning rate (default: 1e-3).
        betas (tuple of float or Tensor): decay rates of the two moments (default: (0.9, 0.999)).
        eps (float): added to the denominator (default: 1e-8).
        weight_decay (float): decoupled weight decay coefficient (default: 1e-2).
        amsgrad (bool): the AMSGrad variant (default: False).
        maximize (bool): ascend instead of descending (default: False).
        foreach, capturable, differentiable, fused, eps_in_sqrt: see :class:`Adam`.
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        state_bits, min_8bit_size, master_weight_bits, stochastic_rounding, rounding_seed,
        norm_group: the passes around the update and compact formats, see :class:`Adam`.

    State per parameter: that of :class:`Adam`.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch, or a format does not suit.

    Source: I. Loshchilov and F. Hutter, "Decoupled weight decay regularization" (2019), in the form
    of https://docs.pytorch.org/docs/stable/generated/torch.optim.AdamW.html.
    """

    _rule = "adam"
    _arguments = EPS_IN_SQRT | OWN
