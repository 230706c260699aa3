"""One fused pass over given lists: sgd, adam, adamw, rmsprop, named and ordered as torch's.

Each function updates `params` and the states in place, exactly as a step of its class does, and
takes torch's arguments (`torch.optim.adam.adam` and kin): lists of equal length, one entry per
parameter. `foreach`, `fused` and `has_complex` are accepted and change nothing. `capturable` and
`differentiable` are torch's own functions' business. All raise RuntimeError, before anything is
written, where a tensor does not fit its parameter or is not a plain CPU tensor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _core
from .arguments import DECOUPLED_WEIGHT_DECAY, EPS_IN_SQRT

# What torch's functional forms have no argument for.
DEFAULTS = {n: a.default for n, a in (DECOUPLED_WEIGHT_DECAY | EPS_IN_SQRT).items()}


def _update(
    rule: str,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    steps: list[Tensor],
    group: dict[str, Any],
    *,
    maximize: bool,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    first: bytes = b"",
) -> None:
    for name, tensors in [("grads", grads), *((f"states[{k}]", s) for k, s in enumerate(states))]:
        if len(tensors) != len(params):
            raise ValueError(f"{name} has {len(tensors)} tensors, params {len(params)}")
    if steps and len(steps) != len(params):
        raise ValueError(f"state_steps has {len(steps)} tensors, params {len(params)}")
    if found_inf is not None and found_inf.item():
        return
    scale = None if grad_scale is None else grad_scale.item()
    group = {**DEFAULTS, **group}
    threads = torch.get_num_threads()
    _core.update(rule, params, grads, states, steps, first, group, maximize, scale, threads)


def _refuse(function: str, **options: bool) -> None:
    for option, value in options.items():
        if value:
            raise RuntimeError(
                f"fastopt.functional.{function} has no {option}=True; "
                f"use torch's own functional form for it"
            )


def sgd(
    params: list[Tensor],
    d_p_list: list[Tensor],
    momentum_buffer_list: list[Tensor | None],
    has_sparse_grad: bool = False,
    foreach: bool | None = None,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    *,
    weight_decay: float,
    momentum: float,
    lr: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """SGD over lists: see :class:`fastopt.SGD` for the algorithm, `torch.optim.sgd.sgd` for the
    arguments. A None in `momentum_buffer_list` is replaced by that parameter's first buffer.
    """
    _refuse("sgd", has_sparse_grad=has_sparse_grad)
    buffers: list[Tensor] = []
    first = bytes(buffer is None for buffer in momentum_buffer_list)
    if momentum != 0:
        for grad, buffer in zip(d_p_list, momentum_buffer_list, strict=True):
            buffers.append(torch.empty_like(grad) if buffer is None else buffer)
    _update(
        "sgd",
        params,
        d_p_list,
        [buffers] if momentum != 0 else [],
        [],
        {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        },
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
        first=first,
    )
    skipped = found_inf is not None and bool(found_inf.item())
    if momentum != 0 and not skipped:
        momentum_buffer_list[:] = buffers


def adam(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,
    decoupled_weight_decay: bool = False,
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """Adam over lists: see :class:`fastopt.Adam` for the algorithm, `torch.optim.adam.adam` for the
    arguments. `state_steps` are counted up.
    """
    _refuse("adam", capturable=capturable, differentiable=differentiable)
    states = [exp_avgs, exp_avg_sqs] + ([max_exp_avg_sqs] if amsgrad else [])
    _update(
        "adam",
        params,
        grads,
        states,
        state_steps,
        {
            "lr": lr,
            "betas": (beta1, beta2),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "decoupled_weight_decay": decoupled_weight_decay,
        },
        maximize=maximize,
        grad_scale=grad_scale,
        found_inf=found_inf,
    )


def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    capturable: bool = False,
    differentiable: bool = False,
    fused: bool | None = None,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
    has_complex: bool = False,
    *,
    amsgrad: bool,
    beta1: float | Tensor,
    beta2: float | Tensor,
    lr: float | Tensor,
    weight_decay: float,
    eps: float,
    maximize: bool,
) -> None:
    """AdamW over lists: :func:`adam` with decoupled weight decay, as `torch.optim.adamw.adamw`."""
    adam(
        params,
        grads,
        exp_avgs,
        exp_avg_sqs,
        max_exp_avg_sqs,
        state_steps,
        foreach,
        capturable,
        differentiable,
        fused,
        grad_scale,
        found_inf,
        has_complex,
        True,
        amsgrad=amsgrad,
        beta1=beta1,
        beta2=beta2,
        lr=lr,
        weight_decay=weight_decay,
        eps=eps,
        maximize=maximize,
    )


def rmsprop(
    params: list[Tensor],
    grads: list[Tensor],
    square_avgs: list[Tensor],
    grad_avgs: list[Tensor],
    momentum_buffer_list: list[Tensor],
    state_steps: list[Tensor],
    foreach: bool | None = None,
    maximize: bool = False,
    differentiable: bool = False,
    capturable: bool = False,
    has_complex: bool = False,
    *,
    lr: float | Tensor,
    alpha: float,
    eps: float,
    weight_decay: float,
    momentum: float,
    centered: bool,
) -> None:
    """RMSprop over lists: see :class:`fastopt.RMSprop` for the algorithm,
    `torch.optim.rmsprop.rmsprop` for the arguments. `state_steps` are counted up.
    """
    _refuse("rmsprop", capturable=capturable, differentiable=differentiable)
    states = [square_avgs]
    if momentum > 0:
        states.append(momentum_buffer_list)
    if centered:
        states.append(grad_avgs)
    _update(
        "rmsprop",
        params,
        grads,
        states,
        state_steps,
        {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        },
        maximize=maximize,
    )
