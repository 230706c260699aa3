"""Parameter shapes of real networks, generated from their architecture, then the synthetic works.

GPT-2, ResNet, ViT, MLP, then WORKS: every work of the tables by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

Shape = tuple[int, ...]


def numel(shapes: Sequence[Shape]) -> int:
    """Elements in all `shapes` together."""
    return sum(math.prod(shape) for shape in shapes)


def _linear(inputs: int, outputs: int) -> list[Shape]:
    return [(outputs, inputs), (outputs,)]


def _norm(width: int) -> list[Shape]:
    return [(width,), (width,)]


def gpt2(layers: int = 12, d: int = 768, vocab: int = 50257, context: int = 1024) -> list[Shape]:
    """GPT-2 with the output head tied to the token embedding; the defaults are GPT-2 small."""

    def conv1d(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]  # GPT-2 stores its matrices transposed

    block = [
        *_norm(d),
        *conv1d(d, 3 * d),
        *conv1d(d, d),
        *_norm(d),
        *conv1d(d, 4 * d),
        *conv1d(4 * d, d),
    ]
    return [(vocab, d), (context, d), *block * layers, *_norm(d)]


def resnet(depths: Sequence[int] = (3, 4, 6, 3), classes: int = 1000) -> list[Shape]:
    """ResNet of bottleneck blocks (expansion 4); the defaults are ResNet-50."""

    def conv(inputs: int, outputs: int, kernel: int) -> list[Shape]:
        return [(outputs, inputs, kernel, kernel), *_norm(outputs)]

    shapes = conv(3, 64, 7)
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            shapes += conv(channels, width, 1) + conv(width, width, 3) + conv(width, 4 * width, 1)
            if block == 0:
                shapes += conv(channels, 4 * width, 1)  # the downsampling shortcut
            channels = 4 * width
    return shapes + _linear(channels, classes)


def vit(
    layers: int = 12, d: int = 768, patch: int = 16, image: int = 224, classes: int = 1000
) -> list[Shape]:
    """Vision transformer with a class token; the defaults are ViT-B/16."""
    tokens = (image // patch) ** 2 + 1
    block = [
        *_norm(d),
        *_linear(d, 3 * d),
        *_linear(d, d),
        *_norm(d),
        *_linear(d, 4 * d),
        *_linear(4 * d, d),
    ]
    stem: list[Shape] = [(1, 1, d), (d, 3, patch, patch), (d,), (1, tokens, d)]
    return [*stem, *block * layers, *_norm(d), *_linear(d, classes)]


def mlp(widths: Sequence[int] = (784, 10, 10)) -> list[Shape]:
    """Fully connected layers between consecutive `widths`."""
    return [shape for i, o in pairwise(widths) for shape in _linear(i, o)]


WORKS: dict[str, Callable[[], list[Shape]]] = {
    "1x64M": lambda: [(64 * 2**20,)],
    "1x16M": lambda: [(16 * 2**20,)],
    "gpt2": gpt2,
    "resnet50": resnet,
    "vit-b16": vit,
    "100x256x256": lambda: [(256, 256)] * 100,
    "1000x64": lambda: [(64,)] * 1000,
    "mlp": mlp,
}
