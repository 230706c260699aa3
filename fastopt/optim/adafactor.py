"""Adafactor: torch's class, fastopt's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _core
from ..backends import adafactor
from ..stepping import Outcome, Work
from ._whole import WholeStep

# A group's numbers for parameters of a type, as the core has them.
Numbers = tuple[float, float, float, float, float, float, bool]


class Adafactor(WholeStep, torch.optim.Adafactor):
    r"""Adafactor, a drop-in for `torch.optim.Adafactor`: second moments by rows and columns.

    With gradient g (negated if `maximize`) and parameter p of n numbers, whose last two dimensions
    are A rows and B columns, step t, and w = t ** beta2_decay::

        alpha = max(eps[1], |p| / sqrt(n)) * min(lr, 1 / sqrt(t))
        p = p * (1 - lr * weight_decay)
        row = row + w * (mean over each row of g * g - row)
        col = col + w * (mean over each column of g * g - col)
        v = row * col / max(mean of row, eps[0])
        u = g / sqrt(max(v, eps[0]**2))
        p = p - alpha / max(1, |u| / (sqrt(n) * d)) * u

    Of a parameter of less than two dimensions, v is an average of g * g itself. Three sweeps over a
    parameter do all of it: sums, then the norm of u, then the update; small parameters stay in the
    cache between them, and threads share the large ones.

    Args:
        params: parameters, named parameters, or dicts defining param groups; any shape, float32,
            float64, bfloat16 or float16. Others than contiguous ones take a contiguous copy.
        lr (float or Tensor): the largest relative step (default: 1e-2).
        beta2_decay (float): the power of the step that the averages' weight is (default: -0.8).
        eps (tuple of float): the least denominator, None for the machine epsilon of the parameter's
            type; the least scale of a parameter (default: (None, 1e-3)).
        d (float): the root mean square that an update is clipped to (default: 1.0).
        weight_decay (float): decoupled weight decay coefficient (default: 0).
        foreach (bool, optional): accepted as torch accepts it; the step is always fused.
        maximize (bool): ascend instead of descending (default: False).
        max_grad_norm, max_grad_value, skip_nonfinite, l1, ema_decay, clear_grads, track_stats,
        norm_group: the passes around the update, see :class:`Adam`; here torch's operations, one
            after another.

    State per parameter: `step` (0-d); `row_var` and `col_var`, or `variance` where there are less
    than two dimensions, of the gradient's type. There are no compact formats. On GPUs, and where
    gradients have another type, torch's operations are batched by shape. DTensors take torch's own
    step, which refuses them as of 2.13.

    Raises:
        ValueError: a hyperparameter is out of range, as in torch.

    Source: N. Shazeer and M. Stern, "Adafactor: Adaptive learning rates with sublinear memory cost"
    (2018), in the form of https://docs.pytorch.org/docs/stable/generated/torch.optim.Adafactor.html.
    """

    _rule = "adafactor"

    @torch.no_grad()
    def _whole_step_of(self, work: Sequence[Work], first: Callable[[], None] | None) -> Outcome:
        here = [one for one in work if one.backend == "cpu"]
        rest = [one for one in work if one.backend != "cpu"]
        for one in rest:
            if reason := adafactor.unfit(one.param, self.state[one.param]):
                return one.place, reason
        shared = bool(rest) and self._reach_twice(work)
        if here and shared:
            return self._one_by_one(work, first)
        items = [adafactor.Item(one.group, one.param, self.state[one.param]) for one in rest]

        def before() -> None:
            if first is not None:
                first()
            adafactor.update(items, shared)

        if here:
            return self._compiled(here, before if items or first is not None else None)
        before()
        return None

    def _reach_twice(self, work: Sequence[Work]) -> bool:
        """Whether they share memory that is written, or one has its own in two places."""
        written = [one.param for one in work]
        written += [t for p in written for t in self.state[p].values() if isinstance(t, Tensor)]
        read = [one.param.grad for one in work if one.param.grad is not None]
        return _core.share_memory(written, read)

    def _compiled(self, work: Sequence[Work], first: Callable[[], None] | None) -> Outcome:
        """The core's step; where memory is reached twice, one parameter after the other."""
        groups: list[Numbers] = []
        places: dict[tuple[int, torch.dtype], int] = {}
        lists: tuple[list[Any], ...] = ([], [], [], [], [], [])
        params, grads, rows, cols, steps, of = lists
        for index, _, group, p in work:
            if (kind := (id(group), p.dtype)) not in places:
                places[kind] = len(groups)
                groups.append(numbers_of(group, p.dtype))
            held, factored = self.state[p], p.dim() > 1
            row = held["row_var" if factored else "variance"]
            col = held["col_var"] if factored else None
            beside = row if col is None else col
            if not all(isinstance(t, Tensor) for t in (row, beside, held["step"])):
                return index, "one of its states is no tensor"
            found = (p, p.grad, row, col, held["step"], places[kind])
            for to, value in zip(lists, found, strict=True):
                to.append(value)
        threads, given = torch.get_num_threads(), [*params]
        written, read = plain(params) + plain_variances(rows, cols), plain(grads)
        if (written or read) and len(work) > 1:
            own = [*given, *(r for r, c in zip(rows, cols, strict=True) if c is None)]
            own += [t for t, _ in read]
            if _core.share_memory([t for t, _ in written], own):
                return self._one_by_one(work, first)

        def then_copied() -> None:
            if first is not None:
                first()
            for original, copy in (*written, *read):
                copy.copy_(original)

        before = then_copied if first is not None and (written or read) else first
        done = _core.adafactor(params, grads, rows, cols, steps, groups, of, before, threads)
        if isinstance(done, tuple):
            return work[done[0]].place, done[1]
        if not done:
            return self._one_by_one(work, first)
        for original, copy in written:
            original.copy_(copy)
        return None

    def _one_by_one(self, work: Sequence[Work], first: Callable[[], None] | None) -> Outcome:
        """As torch's loop does, where memory is reached twice; all are checked before the first."""
        for one in work:
            if reason := adafactor.unfit(one.param, self.state[one.param]):
                return one.place, reason
            if self._reach_twice([one]):
                reason = "its gradient or a state shares memory with it; clone() one of them"
                return one.place, reason
        for one in work:
            if (outcome := self._whole_step_of([one], first)) is not None:
                return outcome
            first = None
        return None


def numbers_of(group: dict[str, Any], dtype: torch.dtype) -> Numbers:
    eps1, eps2 = group["eps"]
    eps1 = torch.finfo(dtype).eps if eps1 is None else eps1
    of = (group["lr"], group["beta2_decay"], eps1, eps2, group["d"], group["weight_decay"])
    lr, beta2_decay, eps1, eps2, d, weight_decay = (float(x) for x in of)
    return lr, beta2_decay, eps1, eps2, d, weight_decay, bool(group["maximize"])


def plain_variances(rows: list[Tensor], cols: list[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
    """The same of those alone that lie as a gradient does."""
    variances = [place for place, col in enumerate(cols) if col is None]
    held = [rows[place] for place in variances]
    copies = plain(held)
    for place, variance in zip(variances, held, strict=True):
        rows[place] = variance
    return copies


def plain(tensors: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Puts contiguous copies in the places of others; which of which."""
    copies = []
    for place, tensor in enumerate(tensors):
        if not tensor.is_contiguous():
            tensors[place] = tensor.contiguous()
            copies.append((tensor, tensors[place]))
    return copies
