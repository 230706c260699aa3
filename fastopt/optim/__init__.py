"""The optimizer classes, one file each."""

from ._fused import FusedStep
from .adagrad import Adagrad
from .adam import Adam, AdamW
from .asgd import ASGD
from .lion import Lion
from .nadam import NAdam
from .rmsprop import RMSprop
from .rprop import Rprop
from .sgd import SGD

__all__ = ["ASGD", "SGD", "Adagrad", "Adam", "AdamW", "Lion", "NAdam", "RMSprop", "Rprop"]

CLASSES: list[type[FusedStep]] = [globals()[name] for name in __all__]
