"""The networks that the demo trains, by name: their first layer (standardised), mlp, conv, NETS."""

from collections.abc import Callable

import torch
from kornia.enhance import Normalize
from torch import nn


def standardised() -> nn.Module:
    """Images in [0, 1] to zero mean and unit variance, with the digits' mean and deviation.

    Without it all inputs are positive, and many of the few hidden units of ``mlp`` die.
    """
    return Normalize(mean=torch.tensor([0.305]), std=torch.tensor([0.325]))


def mlp() -> nn.Module:
    """784-10(relu)-10(softmax): 7 960 parameters; takes images (batch, 1, 28, 28).

    It returns logits: the softmax is inside ``torch.nn.functional.cross_entropy``, which computes
    it together with the logarithm because that does not overflow.
    """
    return nn.Sequential(
        standardised(), nn.Flatten(), nn.Linear(784, 10), nn.ReLU(), nn.Linear(10, 10)
    )


def conv() -> nn.Module:
    """Two 3x3 convolutions (16 and 32 channels), each halved by max-pooling, then 1568-64-10.

    105 866 parameters; takes images (batch, 1, 28, 28) and returns logits, as ``mlp`` does.
    """
    return nn.Sequential(
        standardised(),
        nn.Conv2d(1, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(1568, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


NETS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "conv": conv}
