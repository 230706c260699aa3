"""The digits (load_digits), their augmentation (AUGMENTATIONS, augmented), the batches (batches).

Every random draw comes from the seed passed in, and none from or into torch's global generator:
two trainings with one seed see the same batches, whatever else runs in the process.
"""

from collections.abc import Callable, Iterator, Sequence

import kornia.augmentation as kornia
import torch
from sklearn import datasets, model_selection
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

SIDE = 28
TEST_IMAGES = 360

# The ranges keep a digit legible: beyond them a shifted 1 leaves the image, a turned 6 nears a 9.
AUGMENTATIONS: dict[str, Callable[[], nn.Module]] = {
    "shift": lambda: kornia.RandomTranslate((-0.1, 0.1), (-0.1, 0.1), p=1.0),
    "rotate": lambda: kornia.RandomRotation(degrees=12.0, p=1.0),
    "crop": lambda: kornia.RandomResizedCrop((SIDE, SIDE), scale=(0.75, 1.0), ratio=(0.9, 1.1)),
    "flip": lambda: kornia.RandomHorizontalFlip(p=0.5),
}
# No flip: a mirrored digit is not a digit of the same class.
DEFAULT_AUGMENTATIONS = ("shift", "rotate", "crop")


def load_digits(seed: int) -> tuple[TensorDataset, TensorDataset]:
    """scikit-learn's 1 797 handwritten digits as (train, test), split by class with ``seed``.

    Images are float32 (n, 1, 28, 28) in [0, 1], enlarged from 8x8 by bilinear interpolation;
    labels are int64 (n,); 360 images are the test set.
    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """
    digits = datasets.load_digits()
    images = torch.tensor(digits.images / digits.images.max(), dtype=torch.float32).unsqueeze(1)
    images = nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
    labels = torch.tensor(digits.target)
    train, test = model_selection.train_test_split(
        range(len(labels)), test_size=TEST_IMAGES, stratify=labels, random_state=seed
    )
    return (
        TensorDataset(images[train], labels[train]),
        TensorDataset(images[test], labels[test]),
    )


def augmented(images: Tensor, names: Sequence[str], seed: int) -> Tensor:
    """A copy of ``images`` (n, 1, 28, 28) with the AUGMENTATIONS in ``names`` applied in order.

    Each image gets its own draw. Shape and range [0, 1] are kept, and ``seed`` fixes the result.
    """
    # kornia draws from torch's global generator, which is not ours to move.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name in names:
            images = AUGMENTATIONS[name]()(images)
    return images.clamp(0.0, 1.0)


def batches(
    data: TensorDataset, *, batch_size: int, epochs: int, augmentations: Sequence[str], seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """(images, labels) for ``epochs`` epochs, shuffled and augmented anew in each.

    Augmenting a whole epoch at once, and not batch by batch, makes the pictures independent of
    the batch size and keeps stochastic gradient descent (batch size 1) affordable.
    """
    images, labels = data.tensors
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        epoch_seed = int(torch.randint(2**31, (), generator=generator))
        epoch = TensorDataset(augmented(images, augmentations, epoch_seed), labels)
        yield from DataLoader(epoch, batch_size, shuffle=True, generator=generator)
