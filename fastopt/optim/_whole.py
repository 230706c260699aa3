"""The step of a rule over whole tensors: what its classes share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..arguments import FORMATS, PASSES, Argument
from ._fused import FusedStep


class WholeStep(FusedStep):
    """Mixin before one of torch's classes whose rule looks at whole tensors, see declared.py: the
    passes around its update are torch's operations, and there are no compact formats.
    """

    _arguments: ClassVar[Mapping[str, Argument]] = PASSES

    def _check_formats(self, place: int) -> None:
        given = [name for name in FORMATS if name in self.param_groups[place]]
        if given:
            name = type(self).__name__
            raise ValueError(
                f"{name} has no {', '.join(given)}: its states are kept in the gradient's dtype. "
                f"Allowed beside torch's arguments: {', '.join(PASSES)}"
            )
