"""A classification task: scikit-learn's digits, their batches, a convolutional net, an MLP."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

Data = tuple[Iterator[tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]
BATCH = 32
SIDE = 8
CHANNELS = 64  # so that 8-bit states apply: rows of weights are whole blocks


def digits(seed: int) -> Data:
    """Batches without end of (images, labels), and a fifth of all, the same always, held out.

    Images are standardised, (n, 1, 8, 8); those of batches are shifted by up to a pixel.
    """
    from sklearn import datasets, model_selection

    found = datasets.load_digits()
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)
    images, labels = (images - images.mean()) / images.std(), torch.tensor(found.target)
    train, held_out = model_selection.train_test_split(
        range(len(labels)), test_size=0.2, stratify=labels, random_state=0
    )
    return _shifted(images[train], labels[train], seed), (images[held_out], labels[held_out])


def _shifted(images: Tensor, labels: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    source = torch.Generator().manual_seed(seed)
    padded = pad(images, (1, 1, 1, 1), value=float(images.min()))
    windows = padded.unfold(2, SIDE, 1).unfold(3, SIDE, 1)  # (n, 1, 3, 3, 8, 8)
    while True:
        chosen = torch.randint(len(images), (BATCH,), generator=source)
        down, right = torch.randint(3, (2, BATCH), generator=source)
        yield windows[chosen, :, down, right], labels[chosen]


def conv() -> nn.Module:
    """Three 3x3 convolutions, the first two halved by max-pooling, then a linear layer."""

    def layer(channels: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, CHANNELS, kernel_size=3, padding=1), nn.ReLU()]

    pool, head = nn.MaxPool2d(2), nn.Linear(CHANNELS * (SIDE // 4) ** 2, 10)
    first, second, third = layer(1), layer(CHANNELS), layer(CHANNELS)
    return nn.Sequential(*first, pool, *second, pool, *third, nn.Flatten(), head)


def mlp() -> nn.Module:
    """64-256(relu)-256(relu)-10."""
    first, second, head = nn.Linear(SIDE**2, 256), nn.Linear(256, 256), nn.Linear(256, 10)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU(), head)
