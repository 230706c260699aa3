"""patch(): what a trainer makes of torch.optim's classes by itself becomes fastopt's."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import Any

import torch

from .optim import CLASSES


def patch() -> ExitStack:
    """Let calls of `torch.optim.AdamW` and its like make fastopt's optimizers, for trainers that
    choose the class themselves, as Hugging Face's `optim="adamw_torch"` does.

    Either for good, or as long as optimizers are made::

        fastopt.patch()

        with fastopt.patch():
            trainer.train()

    This concerns every class of torch's that fastopt has, wherever it was imported to and whenever.
    It stays what it is: fastopt's optimizers are instances of it, other subclasses are made as
    before, and so are copies and pickles of torch's optimizers; what was made fastopt's stays so.
    Only a test of the exact type, as `type(optimizer) is torch.optim.AdamW`, now fails: DeepSpeed
    has one, see docs/trainers.md.

    Returns:
        A context manager, entered already, that undoes at its end, or on `close()`, what this call
        has done: nothing where another patch() is in force.
    """
    undo = ExitStack()
    for ours in CLASSES:
        theirs: Any = ours.__bases__[1]
        known = theirs is getattr(torch.optim, theirs.__name__, None)  # Lion's is not torch's
        if known and getattr(theirs.__init__, "makes", None) is not ours:
            undo.callback(setattr, theirs, "__init__", theirs.__init__)
            theirs.__init__ = _initialize(theirs, ours)
    return undo


# Not __new__: a class that had one of its own for a while refuses arguments afterwards.
def _initialize(theirs: Any, ours: Any) -> Any:
    initialize = theirs.__init__

    @functools.wraps(initialize)  # and its signature
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        if type(self) is theirs:
            self.__dict__ = ours.__new__(ours).__dict__
            self.__class__ = ours
            self.__init__(*args, **kwargs)
        else:
            initialize(self, *args, **kwargs)

    __init__.makes = ours  # type: ignore[attr-defined]
    return __init__
