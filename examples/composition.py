"""The passes around an update with torch's own tools: attach, then averaged.

Clipping, L1 and averaged weights, one pass over memory after another, as a training loop has them
that uses torch.optim. fastopt's optimizers take them as arguments and do them in one pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

# What trains the parameters that an optimizer does not take.
BESIDE: WeakKeyDictionary[Optimizer, Optimizer] = WeakKeyDictionary()
ARGUMENTS = ("max_grad_norm", "l1", "ema_decay")


def attach(
    optimizer: Optimizer,
    max_grad_norm: float | None = None,
    l1: float = 0.0,
    ema_decay: float | None = None,
) -> None:
    """Do before and after each step of ``optimizer`` what fastopt's arguments of these names do."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    averages: list[torch.Tensor] = []

    @torch.no_grad()
    def before(*_: Any) -> None:
        if max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(params, max_grad_norm)
        for p in params if l1 else ():
            p.grad.add_(p.sign(), alpha=l1)

    def after(*_: Any) -> None:
        if ema_decay is None:
            return
        if averages:
            get_ema_multi_avg_fn(ema_decay)(averages, params, None)  # type: ignore[no-untyped-call]
        else:
            averages.extend(p.detach().clone() for p in params)
            for p, average in zip(params, averages, strict=True):
                optimizer.state[p]["ema"] = average

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


@contextmanager
def averaged(optimizer: Optimizer) -> Iterator[None]:
    """The averaged weights in the parameters, where ``optimizer`` keeps an average."""
    if optimizer in BESIDE:
        with averaged(BESIDE[optimizer]), _averaged(optimizer):
            yield
    else:
        with _averaged(optimizer):
            yield


@contextmanager
def _averaged(optimizer: Optimizer) -> Iterator[None]:
    params = [p for group in optimizer.param_groups for p in group["params"]]
    if not all("ema" in optimizer.state[p] for p in params):
        yield
    elif hasattr(optimizer, "swap_ema"):
        with optimizer.swap_ema():
            yield
    else:
        live = [p.detach().clone() for p in params]
        try:
            with torch.no_grad():
                for p in params:
                    p.copy_(optimizer.state[p]["ema"])
            yield
        finally:
            with torch.no_grad():
                for p, weight in zip(params, live, strict=True):
                    p.copy_(weight)
