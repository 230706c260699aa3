"""Choosing a learning rate: Curve, range_test for one net and optimizer, then plot for many."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.ndimage import gaussian_filter1d
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import TensorDataset

from .data import batches
from .optimizers import OPTIMIZERS, build
from .train import Learner, Settings, new_net

LOWEST, HIGHEST, STEPS = 1e-5, 1.0, 150
# A loss this many times that of the first step means that the training has diverged.
DIVERGED = 3.0


@dataclass(frozen=True)
class Curve:
    """The smoothed loss after a step at each of the growing learning ``rates``."""

    rates: list[float]
    losses: list[float]

    def suggestion(self) -> float:
        """A tenth of the rate of the lowest loss: the lowest itself is on the verge of diverging.

        Source: Gugger, How Do You Find A Good Learning Rate, 2018.
        """
        return self.rates[int(np.argmin(self.losses))] / 10.0


def range_test(
    net: str,
    optimizer: str,
    settings: Settings,
    train: TensorDataset,
    on_step: Callable[[], object],
) -> Curve:
    """Train with fastopt for 150 steps while the learning rate grows from 1e-5 to 1.

    The loss falls where the rate is useful and rises where it is too high; a training that
    diverges ends early. ``on_step`` is called after each batch.
    Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2015, section 3.3; the
    rate grows exponentially, not linearly as there, to cover several powers of ten.
    """
    model = new_net(net, settings.seed)
    overrides = {**settings.overrides, "lr": LOWEST}
    built = build("fastopt", optimizer, model.parameters(), overrides)
    growth = (HIGHEST / LOWEST) ** (1 / STEPS)
    learner = Learner(model, built, ExponentialLR(built, gamma=growth))
    stream = batches(
        train,
        batch_size=settings.batch_size,
        epochs=math.ceil(STEPS * settings.batch_size / len(train)),
        augmentations=settings.augmentations,
        seed=settings.seed,
    )
    rates: list[float] = []
    for images, labels in islice(stream, STEPS):
        rates.append(built.param_groups[0]["lr"])
        learner.learn(images, labels)
        on_step()
        # Written so that it is also true of a loss that is not a number.
        if not learner.losses[-1] < DIVERGED * learner.losses[0]:
            break
    # How far the last loss has jumped says nothing, and it would dwarf the rest of the curve.
    ceiling = DIVERGED * learner.losses[0]
    drawn = np.nan_to_num(learner.losses, nan=ceiling).clip(max=ceiling)
    return Curve(rates, gaussian_filter1d(drawn, sigma=4.0).tolist())


def plot(curves: Mapping[tuple[str, str], Curve], path: Path) -> None:
    """Draw the loss over the learning rate: a panel per net (row) and optimizer (column)."""
    nets = list(dict.fromkeys(net for net, _ in curves))
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in curves))
    figure = Figure(figsize=(4 * len(optimizers) + 1, 3 * len(nets) + 1), layout="constrained")
    axes = figure.subplots(len(nets), len(optimizers), squeeze=False, sharex=True, sharey="row")
    for (net, optimizer), curve in curves.items():
        panel = axes[nets.index(net), optimizers.index(optimizer)]
        panel.semilogx(curve.rates, curve.losses)
        panel.axvline(
            OPTIMIZERS[optimizer].arguments["lr"],
            color="grey",
            linestyle="--",
            label="the demo's default",
        )
        panel.axvline(curve.suggestion(), color="tab:red", label="to try: lowest point / 10")
        panel.set_title(f"{net}, {optimizer}: try {curve.suggestion():.1g}")
        panel.grid(alpha=0.3)
    for panel in axes[-1]:
        panel.set_xlabel("learning rate")
    for panel in axes[:, 0]:
        panel.set_ylabel("training loss, smoothed")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.suptitle("Range test: the loss while the learning rate grows")
    figure.savefig(path, dpi=120)
