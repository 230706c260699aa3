"""One step of torch's for-loop on copies of an optimizer's tensors, its passes done by torch's own
functions around it; then how far apart two results may be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from memory import CLIPS, SHAKES, Copy, apart, parameters, plain
from reference import number
from support import NUMBERS, discover
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from fastopt import _core
from fastopt.arguments import PASSES, setting

UNITS = (
    16  # of eps: a fused update rounds fewer times, torch's loop in 16 bits after every operation
)
TAME = 1e15  # above, squares overflow in float32 and not in double


def real(t: Tensor) -> Tensor:
    return torch.view_as_real(t) if t.is_complex() else t


def rounded(x: float, dtype: torch.dtype) -> float:
    return torch.tensor(x, dtype=dtype.to_real()).item()


class Twin:
    """torch's optimizer over copies of ours' tensors; in its for-loop, or as its options say.

    `fill`: parameters that do not take torch's own step. Their missing states begin as zeros, as
    the engine has it, where torch raises; and they step after the others, as is documented.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        copy: Copy,
        loop: bool = True,
        fill: Sequence[Tensor] = (),
    ) -> None:
        rule = optimizer._rule
        self.copy, self.apart, self.skipped = copy, apart(optimizer), False
        self.torch = type(optimizer).__bases__[1]([torch.zeros(1)], lr=0.1)
        self.torch.state.clear()
        self.later = {id(copy(p)) for p in fill}
        self.own = [dict(group) for group in optimizer.param_groups]
        self.torch.param_groups = [self.group(group, loop) for group in optimizer.param_groups]
        self.pairs = [(g, p) for g in self.own for p in g["params"] if p.grad is not None]
        for p in parameters(optimizer):
            twin, state = copy(p), optimizer.state.get(p, {})
            twin.requires_grad_(p.requires_grad)
            if p.grad is not None:
                twin.grad = copy(p.grad, role=1)
            self.torch.state[twin] = {
                k: copy(v, exact=k in NUMBERS, role=2 + i) if plain(v) else v
                for i, (k, v) in enumerate(state.items())
            }
        for group, p in self.pairs:
            if not any(p is filled for filled in fill):
                continue
            state = self.torch.state[copy(p)]
            for name, start in _core.states(rule, group):
                if state.get(name) is None and start is not None:
                    state[name] = copy(p).detach().clone()
                    if start != "param":
                        real(state[name]).fill_(rounded(start, p.dtype))
            for name, begins in _core.carried(rule, group):
                state.setdefault(name, torch.tensor(begins))

    def group(self, group: dict[str, Any], loop: bool) -> dict[str, Any]:
        known = self.torch.defaults
        # Of a learning rate in a tensor, torch's own step computes in float32.
        options = {k: number(v) if loop else v for k, v in group.items() if k in known}
        options |= {"foreach": False, "fused": None} if loop else {}
        return options | {"params": [self.copy(p) for p in group["params"]]}

    @property
    def bare(self) -> bool:
        """Whether torch's step alone is the whole step. A group without gradients counts: its
        skip_nonfinite holds for all.
        """
        return not any(map(self.differs, self.own))

    def differs(self, group: dict[str, Any]) -> bool:
        own = any(setting(group, name) != argument.default for name, argument in PASSES.items())
        return own or bool(group.get("weight_decay") and self.decouples(group))

    def decouples(self, group: dict[str, Any]) -> bool:
        known = "decoupled_weight_decay" in self.torch.defaults
        return not known and bool(group.get("decoupled_weight_decay"))

    @property
    def knows(self) -> bool:
        """Whether torch's functions, one after another, mean the same.

        They write clipped gradients, and average after the last update: where memory is shared,
        that is something else.
        """
        eps_in_sqrt = any(group.get("eps_in_sqrt") for group, _ in self.pairs)
        return not eps_in_sqrt and (self.bare or self.apart)

    @torch.no_grad()
    def step(self) -> None:
        if self.bare:
            return self.update()
        self.skipped = self.before()
        if not self.skipped:
            self.update()
            for group, p in self.pairs:
                if setting(group, "ema_decay") is not None:
                    state, twin = self.torch.state[self.copy(p)], self.copy(p)
                    old = state.setdefault("ema", twin.detach().clone())
                    real(old).lerp_(real(twin.detach()), 1 - setting(group, "ema_decay"))

    def update(self) -> None:
        """Torch's share, then the others."""
        groups = self.torch.param_groups
        for later in (False, True):
            self.torch.param_groups = [
                {**group, "params": [p for p in group["params"] if (id(p) in self.later) == later]}
                for group in groups
            ]
            self.torch.step()
        self.torch.param_groups = groups

    def before(self) -> bool:
        """The passes before the update; whether it is left out."""
        twins = [self.copy(p) for _, p in self.pairs]
        for twin in twins:
            twin.grad = twin.grad.clone()
        norm = get_total_norm([twin.grad for twin in twins])
        finite = all(bool(twin.grad.isfinite().all()) for twin in twins)
        if not finite and any(setting(group, "skip_nonfinite") for group in self.own):
            return True
        for (group, p), twin in zip(self.pairs, twins, strict=True):
            # Shaken too: where one number makes nearly all of the norm, shaking that moves the
            # number as clipped by nothing; and limit and penalty are rounded.
            off = self.copy.sign(CLIPS) * torch.finfo(p.dtype).eps
            if setting(group, "max_grad_norm") is not None:
                clip_grads_with_norm_([twin], setting(group, "max_grad_norm"), norm * (1 + off))
            g = real(twin.grad)
            if setting(group, "max_grad_value") is not None:
                limit = setting(group, "max_grad_value") * (1 + off)
                g.clamp_(-limit, limit)
            sign = real(twin.detach()).sign()
            l1 = setting(group, "l1") * (1 - off)
            g.add_(sign, alpha=-l1 if group["maximize"] else l1)
            if self.decouples(group):
                twin.mul_(1 - number(group["lr"]) * group["weight_decay"])
        for group, theirs in zip(self.own, self.torch.param_groups, strict=True):
            if self.decouples(group):
                theirs["weight_decay"] = 0.0
        return False

    def results(self, p: Tensor) -> dict[str, Tensor]:
        """The parameter and its states; what somebody else keeps among them is left out."""
        twin = self.copy(p)
        states = self.torch.state.get(twin, {})
        known = {
            k: t for k, t in states.items() if plain(t) and (k in NUMBERS or t.shape == p.shape)
        }
        return {"parameter": twin.detach(), **known}


class Loop:
    """torch's step in double, and how far it moves where its numbers are a unit off.

    That is its condition: a difference of nearly equal numbers may be off by as much.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, fill: Sequence[Tensor]) -> None:
        self.exact = Twin(optimizer, Copy(wide=True), fill=fill)
        self.shaken = [Twin(optimizer, Copy(wide=True, shaken=k), fill=fill) for k in range(SHAKES)]
        self.knows = self.exact.knows
        self.before = {
            p: [real(x).to(torch.float64, copy=True).abs() for x in self.exact.results(p).values()]
            for p in parameters(optimizer)
        }
        self.grads = {p: real(self.exact.copy(p.grad)).abs() for _, p in self.exact.pairs}

    def step(self) -> None:
        for twin in (self.exact, *self.shaken):
            twin.step()

    def differences(self, optimizer: torch.optim.Optimizer, halves: bool) -> list[str]:
        """Where the optimizer is not near it; `halves`: where its numbers have 16 bits as well."""
        found = []
        # A variance that is a difference may be nothing but rounding: what is divided by its root
        # is held to the reference only.
        unsteady = {p for group, p in self.exact.pairs if group.get("centered")}
        # So is what moves by a sign: a rounding to 0 is no small difference there.
        continuous = {o.ours: o.continuous for o in discover()}[type(optimizer)]
        for i, p in enumerate(parameters(optimizer)):
            ours = {"parameter": p, **optimizer.state.get(p, {})}
            for name, expected in self.exact.results(p).items():
                steady = name in ("square_avg", "grad_avg", "exp_avg", *NUMBERS)
                if (p in unsteady or not continuous) and not steady:
                    continue
                if not p.numel() or p not in self.grads or (p.itemsize < 4 and not halves):
                    continue
                if not plain(ours.get(name)):
                    if not self.exact.skipped:
                        found.append(f"{name} of {i} is missing")
                    continue
                got = real(ours[name].detach()).double()
                if name in NUMBERS:
                    far = got != expected
                else:
                    far = self.far(p, got, expected, [t.results(p)[name] for t in self.shaken])
                if far.any():
                    found.append(
                        f"{name} of {i}: {got[far][:9]}, torch has {real(expected)[far][:9]}"
                    )
        return found

    def far(self, p: Tensor, got: Tensor, exact: Tensor, shaken: list[Tensor]) -> Tensor:
        limits, exact = torch.finfo(p.dtype), real(exact)
        sizes = [x for x in self.before[p] if x.shape == got.shape] + [self.grads[p]]
        size = torch.stack(sizes).amax(0)
        if p.is_complex():  # torch multiplies complex numbers by scalars: both parts by both
            size = size.amax(-1, keepdim=True).expand_as(size)
        spread = torch.stack([(real(s) - exact).abs() for s in shaken]).amax(0)
        tolerance = (
            UNITS * (spread + limits.smallest_normal * limits.eps) + 4 * limits.eps * exact.abs()
        )
        tolerance = tolerance + 4 * limits.eps * self.before[p][0]
        if not self.exact.apart:
            # Between two turns over shared memory a number may be as large as any, and cancel out.
            tolerance = tolerance + 4 * limits.eps * max(1.0, self.before[p][0].max().item())
        judged = (size < TAME) & spread.isfinite() & (exact.abs() < min(TAME, limits.max / 4))
        return judged & ~((got - exact).abs() <= tolerance)
