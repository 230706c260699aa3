"""Insight into a training: choosing a learning rate, then what each step does to each layer.

`lr_range_test` trains while the learning rate grows and gives everything back as it was.
`watch` hands the statistics of an optimizer made with `track_stats=True` to whoever shows them:
`Scalars` to TensorBoard or wandb, `Live` to the terminal, `History` to a picture, `LayerCheck` as
warnings of layers that have died or explode. rich and matplotlib are imported by what draws:
`pip install "fastopt[insight]"`.
"""

from .layers import LayerCheck, LayerWarning
from .live import Live
from .range_test import LRCurve, lr_range_test
from .stats import History, Scalars, watch

__all__ = [
    "History",
    "LRCurve",
    "LayerCheck",
    "LayerWarning",
    "Live",
    "Scalars",
    "lr_range_test",
    "watch",
]
