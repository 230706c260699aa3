"""Choosing a learning rate: range_test for one net and optimizer, then plot for many."""

from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fastopt.insight import LRCurve, lr_range_test

from .data import batches
from .optimizers import OPTIMIZERS, build
from .train import Settings, new_net

LOWEST, HIGHEST, STEPS = 1e-5, 1.0, 150


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of a batch: images (n, 1, 28, 28), labels (n,)."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def range_test(
    net: str,
    optimizer: str,
    settings: Settings,
    train: TensorDataset,
    on_step: Callable[[], object],
) -> LRCurve:
    """Train with fastopt for at most 150 steps while the learning rate grows from 1e-5 to 1.

    ``on_step`` is called after each batch.
    """
    model = new_net(net, settings.seed)
    built = build("fastopt", optimizer, model.parameters(), settings.overrides)
    stream = batches(
        train,
        batch_size=settings.batch_size,
        epochs=STEPS,  # no batch is drawn before it is asked for
        augmentations=settings.augmentations,
        seed=settings.seed,
    )
    return lr_range_test(
        model,
        built,
        loss,
        stream,
        start_lr=LOWEST,
        end_lr=HIGHEST,
        steps=STEPS,
        on_step=on_step,
    )


def plot(curves: Mapping[tuple[str, str], LRCurve], path: Path) -> None:
    """Draw the loss over the learning rate: a panel per net (row) and optimizer (column)."""
    nets = list(dict.fromkeys(net for net, _ in curves))
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in curves))
    figure = Figure(figsize=(4 * len(optimizers) + 1, 3 * len(nets) + 1), layout="constrained")
    axes = figure.subplots(len(nets), len(optimizers), squeeze=False, sharex=True)
    for (net, optimizer), curve in curves.items():
        panel = axes[nets.index(net), optimizers.index(optimizer)]
        curve.plot(panel)
        default = OPTIMIZERS[optimizer].arguments["lr"]
        panel.axvline(default, color="grey", linestyle="--", label="the demo's default")
        panel.set_title(f"{net}, {optimizer}")
        panel.legend()
    figure.suptitle("Range test: the loss while the learning rate grows")
    figure.savefig(path, dpi=120)
