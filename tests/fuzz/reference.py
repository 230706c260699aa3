"""One step of the NumPy references on a copy of an optimizer's memory, one parameter after another:
each reads its memory when its turn comes, as in torch's loop. fastopt's engine has these bits.
"""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import torch
from memory import Copy, bits, named_tensors, parameters, plain, whole
from support import storage_name, to_numpy
from torch import Tensor

from fastopt import _core, rules
from fastopt.arguments import setting
from fastopt.rules import passes


def number(x: Any) -> float:
    return x.item() if isinstance(x, Tensor) else x


def write(t: Tensor, x: np.ndarray) -> None:
    real = torch.view_as_real(t) if t.is_complex() else t
    real.copy_(torch.from_numpy(np.asarray(x)))


class Reference:
    """The memory of `optimizer` as it is now; `step` makes of it what it should be afterwards."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.name = optimizer._rule
        self.rule = getattr(rules, self.name)
        self.hyper = set(inspect.signature(self.rule).parameters)
        self.copy = Copy()
        for _, t in named_tensors(optimizer):
            self.copy(t)
        self.groups = [
            (
                {k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()},
                [(p, p.grad) for p in group["params"]],
            )
            for group in optimizer.param_groups
        ]
        self.states = {
            p: {k: self.copy(v) for k, v in optimizer.state.get(p, {}).items() if plain(v)}
            for p in parameters(optimizer)
        }
        self.norm: float | None = None  # where a group asks for it
        self.skipped = self.stepped = False
        self.dense = all(
            p.is_contiguous() and g.is_contiguous()
            for _, pairs in self.groups
            for p, g in pairs
            if g is not None
        )
        self.measure()

    def grads(self) -> list[tuple[dict[str, Any], Tensor]]:
        return [(group, g) for group, pairs in self.groups for _, g in pairs if g is not None]

    def measure(self) -> None:
        """The norm of all gradients, and whether the step is left out."""
        options = [group for group, _ in self.groups]
        skips = any(setting(group, "skip_nonfinite") for group in options)
        if skips or any(setting(group, "max_grad_norm") is not None for group in options):
            grads = [to_numpy(self.copy(g)) for _, g in self.grads()]
            self.norm = passes.total_norm(grads)
            self.skipped = skips and not all(np.isfinite(g).all() for g in grads)

    def step(self) -> None:
        """Update all memory, once."""
        if self.stepped:
            return
        self.stepped = True
        had = {p: set(state) for p, state in self.states.items()}
        if not self.skipped:
            self.begin()
            for group, pairs in self.groups:
                for p, g in pairs:
                    if g is not None:
                        self.update(group, p, g, had[p])
            for group, pairs in self.groups:
                for p, g in pairs:
                    if (
                        g is not None
                        and setting(group, "ema_decay") is not None
                        and "ema" not in had[p]
                    ):
                        self.states[p]["ema"] = self.copy(p).clone()
        for group, g in self.grads():
            if setting(group, "clear_grads"):
                self.copy(g).zero_()

    def begin(self) -> None:
        """States that begin as the parameter, of all before the first of them is updated."""
        for group, pairs in self.groups:
            for p, g in pairs:
                for name, start in _core.states(self.name, group):
                    if g is not None and start == "param" and name not in self.states[p]:
                        self.states[p][name] = self.copy(p).detach().clone()

    def update(self, group: dict[str, Any], p: Tensor, grad: Tensor, had: set[str]) -> None:
        dtype, state, weights = storage_name(p.dtype), self.states[p], self.copy(p)
        factor = 1.0
        if setting(group, "max_grad_norm") is not None:
            factor = passes.clip_factor(self.norm, setting(group, "max_grad_norm"))
        g = passes.gradient(
            to_numpy(weights),
            to_numpy(self.copy(grad)),
            dtype=dtype,
            factor=factor,
            max_grad_value=setting(group, "max_grad_value"),
            maximize=group["maximize"],
            l1=setting(group, "l1"),
        )
        for name, start in _core.carried(self.name, group):
            state.setdefault(name, torch.tensor(start))
        if "step" in state:
            state["step"].add_(1)
        hyper = {k: v for k, v in group.items() if k in self.hyper} | {"maximize": False}
        # What the first step begins without reading it, it reads in none of its group's turns.
        unread = {k for k, start in _core.states(self.name, group) if start is None} - had
        states = {k: to_numpy(state[k]) for k in set(state) - unread - {"step", "ema"}}
        after, new = self.rule(
            to_numpy(weights),
            g,
            states,
            step=state["step"].item() if "step" in state else 1,
            dtype=dtype,
            **hyper,
        )
        write(weights, after)
        for name, x in new.items():
            if name not in state:
                state[name] = torch.empty_like(weights)
            write(state[name], x)
        if setting(group, "ema_decay") is not None and "ema" in had:
            old = to_numpy(state["ema"])
            write(
                state["ema"],
                passes.average(old, to_numpy(weights), setting(group, "ema_decay"), dtype),
            )

    def differences(self, optimizer: torch.optim.Optimizer) -> list[str]:
        """Where the optimizer's memory is not this one, to the bit, neighbours included."""
        found = []
        names = ["parameter", "gradient"]
        for i, (p, g) in enumerate(pair for _, pairs in self.groups for pair in pairs):
            for name, t in zip(names, (p, g), strict=True):
                if t is not None and not torch.equal(bits(whole(t)), bits(whole(self.copy(t)))):
                    found.append(f"{name} {i}:\n{t.detach()}\n{self.copy(t)}")
            state, expected = optimizer.state.get(p, {}), self.states[p]
            state = {k: v for k, v in state.items() if plain(v)}
            if state.keys() != expected.keys():
                found.append(f"states of {i} are {[*state]}, should be {[*expected]}")
                continue
            for key, t in state.items():
                known = id(t) in self.copy.made  # then the memory around it is compared as well
                a, b = (whole(t), whole(self.copy(t))) if known else (t, expected[key])
                if not torch.equal(bits(a), bits(b)):
                    found.append(f"state {key!r} of {i}:\n{t}\n{expected[key]}")
        return found
