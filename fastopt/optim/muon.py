"""Muon: torch's class, fastopt's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends import muon
from ..stepping import Outcome, Work
from ._whole import WholeStep


class Muon(WholeStep, torch.optim.Muon):
    r"""Muon, a drop-in for `torch.optim.Muon`: momentum whose update is orthogonalised.

    With gradient g, a matrix p of A rows and B columns, momentum m::

        m = momentum * m + (1 - momentum) * g
        u = momentum * m + (1 - momentum) * g       if nesterov, else u = m
        x = u / max(|u|, eps), transposed where A > B
        ns_steps times:  s = x x',  x = a * x + (b * s + c * s s) x
        p = p * (1 - lr * weight_decay)
        p = p - lr * adjusted * x                   transposed back

    where `adjusted` is sqrt(max(1, A / B)), or 0.2 * sqrt(max(A, B)) where `adjust_lr_fn` is
    "match_rms_adamw". x is in bfloat16, and every product of the iteration is rounded to it, as
    torch has it; here the products of all matrices of one shape (and of its transpose) are batched.
    On CPUs without instructions for bfloat16 the same numbers are multiplied in float32.

    Muon is for the matrices within a network: give AdamW the rest (biases, norms, and, as its
    authors advise, embeddings and the last layer)::

        matrices = [p for p in hidden.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if not any(p is m for m in matrices)]
        optimizers = fastopt.Muon(matrices, lr=0.02), fastopt.AdamW(rest, lr=3e-4)

    Args:
        params: parameters, named parameters, or dicts defining param groups; matrices of any
            layout, float32, float64, bfloat16 or float16.
        lr (float or Tensor): learning rate (default: 1e-3).
        weight_decay (float): decoupled weight decay coefficient (default: 0.1).
        momentum (float): weight of the momentum (default: 0.95).
        nesterov (bool): look ahead by one more step of the momentum (default: True).
        ns_coefficients (tuple of float): a, b, c (default: (3.4445, -4.775, 2.0315)).
        eps (float): the least that the norm is taken for (default: 1e-7).
        ns_steps (int): iterations of the orthogonalisation, less than 100 (default: 5).
        adjust_lr_fn (str, optional): "original" or "match_rms_adamw" (default: None: "original").
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        norm_group: the passes around the update, see :class:`Adam`; here torch's operations, one
            after another.

    State per parameter: `momentum_buffer`, like the gradient. There are no compact formats.
    DTensors, whose shards are parts of matrices, take torch's own step.

    Raises:
        ValueError: a hyperparameter is out of range, or a parameter no matrix, as in torch.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024),
    https://kellerjordan.github.io/posts/muon/, and J. Liu et al., "Muon is scalable for LLM
    training" (2025), in the form of
    https://docs.pytorch.org/docs/stable/generated/torch.optim.Muon.html.
    """

    _rule = "muon"

    @torch.no_grad()
    def _whole_step_of(self, work: Sequence[Work], first: Callable[[], None] | None) -> Outcome:
        items: list[muon.Item] = []
        for index, _, group, p in work:
            grad, buffer = p.grad, self.state[p]["momentum_buffer"]
            assert grad is not None
            check_group(group, p)
            if not isinstance(buffer, Tensor) or buffer.layout != torch.strided:
                return index, "its state 'momentum_buffer' is no dense tensor"
            if buffer.shape != p.shape or buffer.device != p.device:
                return index, (
                    f"its state 'momentum_buffer' has shape {[*buffer.shape]} on {buffer.device}; "
                    f"the parameter has {[*p.shape]} on {p.device}"
                )
            if buffer.dtype != grad.dtype:
                return index, f"its state 'momentum_buffer' is {buffer.dtype}, not {grad.dtype}"
            items.append(muon.Item(group, p, grad, buffer))
        written = [t for item in items for t in (item.param, item.buffer)]
        shared = _core.share_memory(written, [item.grad for item in items])
        if first is not None:
            first()
        muon.update(items, shared)
        return None


def check_group(group: dict[str, Any], param: Tensor) -> None:
    """In torch's words, but before anything is written."""
    if group["ns_steps"] >= 100:
        raise ValueError("Number of steps must be less than 100 for computational efficiency")
    if param.ndim != 2:
        raise ValueError("Param gradient must be a 2D matrix")
    if len(group["ns_coefficients"]) != 3:
        raise ValueError("Coefficients must be a tuple of exactly 3 values")
