"""What steps did to layers, handed on: watch, Scalars for writers, History for a picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch.utils.hooks import RemovableHandle

from ..optim._fused import FusedStep
from ..wrappers import unwrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# By parameter: grad_norm, update_norm, weight_norm, update_ratio.
Stats = Mapping[str, Mapping[str, float]]
Seen = Callable[[int, Stats], object]
# What a picture shows, from left to right.
DRAWN = {
    "grad_norm": "gradient, L2 norm",
    "weight_norm": "weights, L2 norm",
    "update_ratio": "update / weights",
}


def watch(optimizer: Any, *seen: Seen, every: int = 1, start: int = 0) -> RemovableHandle:
    """Call each of `seen` with the step's number and `optimizer.stats()` after steps.

    It is a hook of `step()`, which `step_in_backward()` does not call. Steps that `skip_nonfinite`
    or GradScaler leave out are counted and not shown. Reading the statistics of a GPU's step waits
    for it: there `every` should be large.

    Args:
        optimizer: fastopt's, made with `track_stats=True` (or with such a group), also in a
            trainer's wrapper.
        seen: `Scalars(writer)`, `Live()`, `History()`, `LayerCheck()`, or any function of the
            number of the step, from `start` + 1 on, and of what :meth:`stats` returns.
        every: steps from one look to the next.
        start: steps taken before, where a training goes on.

    Returns:
        A handle: `handle.remove()`, or the end of `with watch(...):`, ends it.

    Raises:
        TypeError: the optimizer is not fastopt's.
        RuntimeError: it tracks no statistics.
        ValueError: `every` is less than 1.
    """
    inner, _ = unwrapped(optimizer)
    if not isinstance(inner, FusedStep):
        name = f"{type(inner).__module__}.{type(inner).__name__}"
        raise TypeError(
            f"watch() shows what fastopt's optimizers measure in their step, and {name} is none of "
            "them: make the class of that name from fastopt, with track_stats=True"
        )
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    inner.stats()  # raises where none are tracked
    step = start

    def look(*_: Any) -> None:
        nonlocal step
        step += 1
        if (step - start) % every == 0 and (stats := inner.stats()):
            for each in seen:
                each(step, stats)

    return inner.register_step_post_hook(look)


class Scalars:
    """Writes every statistic to TensorBoard or to what has wandb's interface.

    Tags are `update_ratio/layer.weight`: a section a statistic, a chart a parameter.

    Args:
        writer: `torch.utils.tensorboard.SummaryWriter`, or anything with its
            `add_scalar(tag, value, step)`; or a wandb run, or anything with its
            `log({tag: value}, step=step)`.

    Raises:
        TypeError: the writer has neither.
    """

    def __init__(self, writer: Any) -> None:
        if not (hasattr(writer, "add_scalar") or hasattr(writer, "log")):
            raise TypeError(
                f"Scalars writes by add_scalar(tag, value, step) or by log(dict, step=...), and "
                f"{type(writer).__name__} has neither: give it TensorBoard's SummaryWriter or a "
                "wandb run"
            )
        self.writer = writer

    def __call__(self, step: int, stats: Stats) -> None:
        """Write one step's."""
        tagged = {f"{key}/{name}": v for name, of in stats.items() for key, v in of.items()}
        if hasattr(self.writer, "add_scalar"):
            for tag, value in tagged.items():
                self.writer.add_scalar(tag, value, step)
        else:
            self.writer.log(tagged, step=step)


class History:
    """Keeps every statistic that it is shown; `plot()` draws them.

    `steps`: numbers of the steps. `values[name][statistic]`: a number a step.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: dict[str, dict[str, list[float]]] = {}

    def __call__(self, step: int, stats: Stats) -> None:
        """Keep one step's; a parameter without statistics in it has NaN there."""
        before = len(self.steps)
        self.steps.append(step)
        for name, of in stats.items():
            kept = self.values.setdefault(name, {key: [float("nan")] * before for key in of})
            for key, value in of.items():
                kept[key].append(value)
        for kept in self.values.values():
            for column in kept.values():
                column.extend([float("nan")] * (before + 1 - len(column)))

    def plot(self, axes: Sequence[Axes] | None = None) -> Figure:
        """Norms of gradients and of weights and update-to-weight ratios, a line a parameter.

        Lines run from the first parameters (dark) to the last (bright). About 1e-3 is what the
        ratio should be: Karpathy, CS231n, "Ratio of weights:updates". Needs matplotlib.

        Args:
            axes: three of matplotlib's, by default in a figure of their own.

        Returns:
            The figure: `history.plot().savefig("stats.png")`.
        """
        from matplotlib import colormaps

        if axes is None:
            from matplotlib.figure import Figure

            axes = Figure(figsize=(10, 3.4), layout="constrained").subplots(1, 3)
        colours = colormaps["viridis"].resampled(max(2, len(self.values)))
        for panel, (key, title) in zip(axes, DRAWN.items(), strict=True):
            for index, (name, of) in enumerate(self.values.items()):
                panel.plot(self.steps, of[key], color=colours(index), label=name, linewidth=1)
            panel.set(yscale="log", xlabel="step", title=title)
            panel.grid(alpha=0.3)
        panel.axhline(1e-3, color="grey", linestyle="--", linewidth=1)
        if len(self.values) <= 12:
            panel.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize="small")
        return cast("Figure", panel.figure)
