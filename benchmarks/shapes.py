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


def _pair(*shape: int) -> list[Shape]:
    """A weight with its bias: one number an output."""
    return [shape, shape[:1]]


def _norm(width: int) -> list[Shape]:
    return [(width,), (width,)]


def _block(d: int) -> list[Shape]:
    """A transformer's: attention, then an MLP four times as wide, each behind a norm.

    GPT-2 stores its matrices transposed, which an update of elements does not see.
    """
    attention = [*_norm(d), *_pair(3 * d, d), *_pair(d, d)]
    return [*attention, *_norm(d), *_pair(4 * d, d), *_pair(d, 4 * d)]


def gpt2(layers: int = 12, d: int = 768, vocab: int = 50257, context: int = 1024) -> list[Shape]:
    """GPT-2 with the output head tied to the token embedding; the defaults are GPT-2 small."""
    return [(vocab, d), (context, d), *_block(d) * layers, *_norm(d)]


def vit(layers: int = 12, d: int = 768, patch: int = 16, classes: int = 1000) -> list[Shape]:
    """Vision transformer for 224 x 224 pixels with a class token; the defaults are ViT-B/16."""
    tokens = (224 // patch) ** 2 + 1
    stem: list[Shape] = [(1, 1, d), *_pair(d, 3, patch, patch), (1, tokens, d)]
    return [*stem, *_block(d) * layers, *_norm(d), *_pair(classes, d)]


def resnet(depths: Sequence[int] = (3, 4, 6, 3), classes: int = 1000) -> list[Shape]:
    """ResNet of bottleneck blocks (expansion 4); the defaults are ResNet-50."""

    def conv(inputs: int, outputs: int, kernel: int) -> list[Shape]:
        return [(outputs, inputs, kernel, kernel), *_norm(outputs)]

    shapes, channels = conv(3, 64, 7), 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for block in range(depth):
            shapes += conv(channels, width, 1) + conv(width, width, 3) + conv(width, 4 * width, 1)
            if block == 0:
                shapes += conv(channels, 4 * width, 1)  # the downsampling shortcut
            channels = 4 * width
    return shapes + _pair(classes, channels)


def mlp(widths: Sequence[int] = (784, 10, 10)) -> list[Shape]:
    """Fully connected layers between consecutive `widths`."""
    return [shape for i, o in pairwise(widths) for shape in _pair(o, i)]


WORKS: dict[str, Callable[[], list[Shape]]] = {
    "1x256M": lambda: [(2**28,)],
    "1x64M": lambda: [(64 * 2**20,)],
    "1x16M": lambda: [(16 * 2**20,)],
    "gpt2": gpt2,
    "resnet50": resnet,
    "vit-b16": vit,
    "100x256x256": lambda: [(256, 256)] * 100,
    "86x8837": lambda: [(8837,)] * 86,
    "1000x64": lambda: [(64,)] * 1000,
    "mlp": mlp,
}
