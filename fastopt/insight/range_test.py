"""The learning-rate range test: LRCurve, lr_range_test, then what that gives back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Batches on either side that a smoothed loss is a mean of, weighted by a Gaussian of half of that.
REACH = 8


@dataclass(frozen=True)
class LRCurve:
    """What a range test found.

    `lrs`: the learning rates, growing. `raw`: the loss of the batch that each was then used on.
    """

    lrs: list[float]
    raw: list[float]

    @property
    def losses(self) -> list[float]:
        """`raw`, smoothed by a Gaussian over 8 batches on either side.

        A running average would move the minimum to larger rates. How far a loss has jumped after
        the lowest says nothing, and would dwarf the rest: it counts as the largest before.
        """
        raw = np.nan_to_num(self.raw, nan=math.inf, posinf=math.inf)
        shown = raw.clip(max=raw[: raw.argmin() + 1].max())
        weights = np.exp(-0.5 * (np.arange(-REACH, REACH + 1) / (REACH / 2)) ** 2)
        padded = np.pad(shown, REACH, mode="edge")
        smoothed: list[float] = np.convolve(padded, weights / weights.sum(), "valid").tolist()
        return smoothed

    def suggestion(self) -> float:
        """A tenth of the rate of the lowest smoothed loss: the lowest is on the verge of diverging.

        Source: Gugger, How Do You Find A Good Learning Rate, 2018.
        """
        return self.lrs[int(np.argmin(self.losses))] / 10.0

    def plot(self, axes: Axes | None = None) -> Figure:
        """Draw the losses against the rate, with the suggestion; needs matplotlib.

        Args:
            axes: where, by default in a figure of its own.

        Returns:
            The figure: `curve.plot().savefig("lr.png")`.
        """
        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(6, 4), layout="constrained").subplots()
        axes.semilogx(self.lrs, self.raw, color="tab:blue", alpha=0.3, label="each batch")
        axes.semilogx(self.lrs, self.losses, color="tab:blue", label="smoothed")
        at = self.suggestion()
        axes.axvline(at, color="tab:red", label=f"to try: {at:.1g}")
        low, high = min(self.losses), max(self.losses)
        room = (high - low) or 1.0
        axes.set_ylim(low - 0.1 * room, high + 0.3 * room)
        axes.set(xlabel="learning rate", ylabel="training loss")
        axes.grid(alpha=0.3)
        axes.legend()
        return cast("Figure", axes.figure)


def lr_range_test(
    model: torch.nn.Module,
    optimizer: Any,
    loss_fn: Callable[[torch.nn.Module, Any], torch.Tensor],
    batches: Iterable[Any],
    *,
    start_lr: float = 1e-7,
    end_lr: float = 10.0,
    steps: int = 100,
    diverged: float = 4.0,
    on_step: Callable[[], object] = lambda: None,
) -> LRCurve:
    """Train for `steps` batches while the learning rate grows exponentially; give all back after.

    The loss falls where the rate is useful and rises where it is too high. With several param
    groups the largest rate goes from `start_lr` to `end_lr` and the others keep their ratio to it.
    Afterwards, also after an exception, the model's parameters and buffers and the optimizer's
    states and groups are what they were; gradients are cleared. Random generators and whatever
    `batches` draws from are not reset.

    Args:
        model: in the mode (`train()` or `eval()`) that it is to be tested in.
        optimizer: any `torch.optim.Optimizer` over its parameters, fastopt's or not.
        loss_fn: `loss_fn(model, batch)` gives the loss of a batch, a tensor of one element.
        batches: what is handed to `loss_fn`, gone around as often as needed.
        start_lr, end_lr: the first and the last rate.
        steps: batches between them, at least 2.
        diverged: a loss whose running mean is this many times the lowest so far ends the test, if
            that is positive, and so does one that is not finite.
        on_step: called after each batch, for a progress bar.

    Returns:
        An :class:`LRCurve`.

    Raises:
        ValueError: rates that do not grow, fewer than 2 steps, no batches.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2015, section 3.3, where
    the rate grows linearly.
    """
    if not 0.0 < start_lr < end_lr < math.inf:
        raise ValueError(f"the rates must grow: got start_lr={start_lr} and end_lr={end_lr}")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    lrs: list[float] = []
    losses: list[float] = []
    mean, lowest = 0.0, math.inf
    with _given_back(model, optimizer):
        groups = optimizer.param_groups
        largest = max(float(group["lr"]) for group in groups)
        shares = [float(group["lr"]) / largest if largest else 1.0 for group in groups]
        # The rates end this, where the batches do not.
        for lr, batch in zip(np.geomspace(start_lr, end_lr, steps).tolist(), _around(batches)):  # noqa: B905
            for group, share in zip(groups, shares, strict=True):
                _set_lr(group, lr * share)
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            lrs.append(lr)
            losses.append(loss.item())
            on_step()
            mean += (losses[-1] - mean) * max(0.2, 1.0 / len(losses))
            lowest = min(lowest, mean)
            if not math.isfinite(losses[-1]) or mean > diverged * lowest > 0.0:
                break
    if not losses:
        raise ValueError("batches is empty: the range test needs at least one batch")
    return LRCurve(lrs, losses)


def _around(batches: Iterable[Any]) -> Iterator[Any]:
    """Again and again, but once of what is its own iterator, and never of nothing."""
    once = iter(batches) is batches
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if once or empty:
            return


def _set_lr(group: dict[str, Any], lr: float) -> None:
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].fill_(lr)  # a captured graph reads this one
    else:
        group["lr"] = lr


@contextmanager
def _given_back(model: torch.nn.Module, optimizer: Any) -> Iterator[None]:
    weights = copy.deepcopy(model.state_dict())
    states = copy.deepcopy(optimizer.state_dict())
    rates = [(group["lr"], float(group["lr"])) for group in optimizer.param_groups]
    try:
        yield
    finally:
        optimizer.zero_grad()
        model.load_state_dict(weights)
        optimizer.load_state_dict(states)
        for group, (held, value) in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = held
            _set_lr(group, value)
