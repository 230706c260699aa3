"""The optimizer classes, one file each."""

from ._fused import FusedStep
from .adam import Adam, AdamW
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

CLASSES: list[type[FusedStep]] = [globals()[name] for name in __all__]
