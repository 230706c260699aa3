"""The demo's pictures, as PNG files: loss_curves, times, layers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from fastopt.insight import History

from .report import Pair

# A wide pale line under a thin dark one: where the curves agree, both are still seen.
STYLES = {
    "torch": {"color": "tab:orange", "alpha": 0.5, "linewidth": 5.0},
    "fastopt": {"color": "tab:blue", "linewidth": 1.2},
}


def loss_curves(pairs: Sequence[Pair], path: Path) -> None:
    """Training loss at each step: a panel per net (row) and optimizer (column)."""
    nets = list(dict.fromkeys(pair.net for pair in pairs))
    optimizers = list(dict.fromkeys(pair.optimizer for pair in pairs))
    figure = Figure(figsize=(4 * len(optimizers) + 1, 3 * len(nets) + 1), layout="constrained")
    axes = figure.subplots(len(nets), len(optimizers), squeeze=False, sharex=True, sharey="row")
    for pair in pairs:
        panel = axes[nets.index(pair.net), optimizers.index(pair.optimizer)]
        for library, run in pair.libraries.items():
            panel.plot(run.losses, label=library, **STYLES[library])
        panel.set_title(
            f"{pair.net}, {pair.optimizer}\nlargest gap {pair.largest_loss_difference:.1e}, "
            f"rounding alone {pair.control_loss_difference:.1e}"
        )
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("step (one batch each)")
    for panel in axes[:, 0]:
        panel.set_ylabel("training loss (cross-entropy)")
        panel.set_ylim(bottom=0.0)
    axes[0, -1].legend()
    figure.suptitle("The same training with torch.optim and with fastopt")
    figure.supxlabel(
        "rounding alone: the gap between torch and torch begun\n"
        "with all weights one rounding step off",
        fontsize="medium",
    )
    figure.savefig(path, dpi=120)


def times(pairs: Sequence[Pair], path: Path) -> None:
    """Median time of one optimizer.step in microseconds, and the speed-up, per net and optimizer.

    The bars begin at zero and share one scale, so that their lengths can be compared.
    """
    figure = Figure(figsize=(8, 1.5 + 0.8 * len(pairs)), layout="constrained")
    axes = figure.subplots()
    height = 0.38
    for row, library in enumerate(STYLES):
        medians = [pair.libraries[library].median_step_seconds * 1e6 for pair in pairs]
        bars = axes.barh(
            [index + (row - 0.5) * height for index in range(len(pairs))],
            medians,
            height,
            label=library,
            color=STYLES[library]["color"],
        )
        labels = [f"{median:.0f}" for median in medians]
        if library != "torch":
            labels = [
                f"{label}  ({pair.step_speed_up:.2f} times as fast)"
                for label, pair in zip(labels, pairs, strict=True)
            ]
        axes.bar_label(bars, labels, padding=4)
    axes.set_yticks(range(len(pairs)), [f"{pair.net}, {pair.optimizer}" for pair in pairs])
    axes.invert_yaxis()
    axes.margins(x=0.45)
    axes.set_xlabel("median time of one optimizer.step, microseconds (shorter is better)")
    figure.legend(loc="outside upper right", ncols=2)
    figure.suptitle("Time in the optimizer")
    figure.savefig(path, dpi=120)


def layers(histories: Mapping[tuple[str, str], History], path: Path) -> None:
    """What fastopt's steps did to each parameter: a row per net and optimizer."""
    figure = Figure(figsize=(11, 2.8 * len(histories) + 0.5), layout="constrained")
    parts = figure.subfigures(len(histories), 1, squeeze=False)[:, 0]
    for ((net, optimizer), history), part in zip(histories.items(), parts, strict=True):
        history.plot(part.subplots(1, 3))
        part.suptitle(f"{net}, {optimizer}")
    figure.savefig(path, dpi=120)
