"""The passes around an update that fastopt's kernels do not take: torch's own, one after another.

For parameters on torch's path, and for optimizers whose parameters take several paths: slower than
the fused pass, and the same meaning.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import precision
from .arguments import PASSES, setting
from .ranks import Agreement, local
from .stepping import Outcome, Stats, Stepping


def passes_on(group: dict[str, Any]) -> list[str]:
    """The names of the passes that a param group asks for."""
    return [name for name, argument in PASSES.items() if setting(group, name) != argument.default]


def measures(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether the norm of the gradients is asked for."""
    return any(
        setting(group, "max_grad_norm") is not None or setting(group, "skip_nonfinite")
        for group in groups
    )


def without_passes(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in PASSES}


def real(t: Tensor) -> Tensor:
    """The real numbers of a tensor; of a lazy conjugate a copy, to be read and not written."""
    return torch.view_as_real(t.resolve_conj()) if t.is_complex() else t


class Composition:
    """One step with its passes, around `bare`, which does the update alone."""

    def __init__(self, optimizer: Stepping, grad_scale: float | None, agreement: Agreement) -> None:
        self.optimizer, self.agreement = optimizer, agreement
        self.norm: float | None = None
        self.stats: list[Stats] = []
        self.updated = [
            (index, group, p)
            for index, (group, p) in enumerate(
                (group, p) for group in optimizer.param_groups for p in group["params"]
            )
            if p.grad is not None
        ]
        for _, group, p in self.updated:
            for reason in (
                "differentiable=True" if group.get("differentiable") else "",
                f"a gradient of layout {p.grad.layout}" if p.grad.layout != torch.strided else "",
            ):
                if reason:
                    raise RuntimeError(
                        f"{type(optimizer).__name__} does not combine {passes_on(group)} with "
                        f"{reason}; leave one of them out. No parameter was changed"
                    )
        self.grads = [p.grad for _, _, p in self.updated]
        self.unscaled = [g if grad_scale is None else g / grad_scale for g in self.grads]

    @torch.no_grad()
    def run(self, bare: Callable[[], Outcome]) -> Outcome:
        groups = self.optimizer.param_groups
        wants = {name for group in groups for name in passes_on(group)}
        if measures(groups):
            # In float64, as the engines sum.
            squares, finite = [0.0] * len(self.agreement.groups), True
            for (index, _, _), g in zip(self.updated, self.unscaled, strict=True):
                numbers = real(local(g))
                team = self.agreement.team_of[index]
                squares[team] += numbers.double().square().sum().item()
                finite &= bool(numbers.isfinite().all())
            square, finite = self.agreement.total(squares, finite)
            self.norm = math.sqrt(square)
            if "skip_nonfinite" in wants and not finite:
                return "skipped"
        before = [
            p.detach().clone() if setting(g, "track_stats") else None for _, g, p in self.updated
        ]
        try:
            for (_, group, p), g in zip(self.updated, self.unscaled, strict=True):
                p.grad = self.prepared(group, p, g)
            self.optimizer.param_groups = [without_passes(group) for group in groups]
            outcome = bare()
        finally:
            self.optimizer.param_groups = groups
            for (_, _, p), g in zip(self.updated, self.grads, strict=True):
                p.grad = g
        if outcome is None:
            for args in zip(self.updated, self.grads, self.unscaled, before, strict=True):
                self.finish(*args)
        return outcome

    def prepared(self, group: dict[str, Any], p: Tensor, g: Tensor) -> Tensor:
        """The gradient that the update is given."""
        max_norm = setting(group, "max_grad_norm")
        if max_norm is not None and self.norm is not None:
            factor = max_norm / (self.norm + 1e-6)
            g = g * (1.0 if factor > 1 else factor)
        if (limit := setting(group, "max_grad_value")) is not None:
            clamped = real(g).clamp(-limit, limit)
            g = torch.view_as_complex(clamped) if g.is_complex() else clamped
        if l1 := setting(group, "l1"):
            sign = real(p.detach()).sign() * (-l1 if group.get("maximize") else l1)
            g = g + (torch.view_as_complex(sign) if g.is_complex() else sign).to(g.dtype)
        return g

    def finish(
        self,
        updated: tuple[int, dict[str, Any], Tensor],
        grad: Tensor,
        unscaled: Tensor,
        before: Tensor | None,
    ) -> None:
        index, group, p = updated
        decay = setting(group, "ema_decay")
        if decay is not None:
            state = self.optimizer.state[p]
            if "ema" in state:
                ema = state["ema"] = state["ema"].resolve_conj()
                now = precision.weight(p, state).to(ema.dtype)
                real(ema).lerp_(real(now), 1 - decay)
            else:
                state["ema"] = p.detach().clone()
        if before is not None:
            own = (local(t) for t in (unscaled, p.detach() - before, p.detach()))
            norms = [real(t).double().norm().item() for t in own]
            self.stats.append((index, *norms))
        if setting(group, "clear_grads"):
            grad.zero_()
        elif unscaled is not grad:
            grad.copy_(unscaled)
