"""A character-level language task: Python's own sources as text, their batches, a transformer."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

CHARACTERS = 1_000_000
CONTEXT = 64
BATCH = 16
VOCABULARY = 128  # ASCII; what lies beyond is left out of the text


def source_text(characters: int = CHARACTERS) -> Tensor:
    """The standard library's modules in the order of their names, as ASCII codes (n,), int64.

    Every machine has it, no download, and it is text that people wrote. The length is the same
    everywhere, the words are those of this Python's version.
    """
    text = b""
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= 2 * characters:
            break
    codes = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return codes[codes < VOCABULARY][:characters].long()


def text_batches(
    seed: int, text: Tensor | None = None, batch: int = BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """(characters, their successors), each (batch, CONTEXT), from random places, without end."""
    text = source_text() if text is None else text
    source = torch.Generator().manual_seed(seed)
    within = torch.arange(CONTEXT)
    while True:
        places = torch.randint(len(text) - CONTEXT, (batch, 1), generator=source) + within
        yield text[places], text[places + 1]


class Transformer(nn.Module):
    """A decoder of `layers` pre-norm blocks of width `d` with learned positions.

    Takes characters (batch, time), returns logits (batch, time, VOCABULARY). The defaults have
    0.83M parameters in 53 tensors.
    Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019.
    """

    def __init__(self, d: int = 128, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, d)
        self.positions = nn.Embedding(CONTEXT, d)
        block = nn.TransformerEncoderLayer(
            d, heads, 4 * d, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(
            block, layers, nn.LayerNorm(d), enable_nested_tensor=False
        )
        self.head = nn.Linear(d, VOCABULARY)

    def forward(self, characters: Tensor) -> Tensor:
        time = characters.shape[1]
        x = self.tokens(characters) + self.positions(torch.arange(time))
        mask = nn.Transformer.generate_square_subsequent_mask(time, dtype=x.dtype)
        logits: Tensor = self.head(self.blocks(x, mask=mask, is_causal=True))
        return logits
