"""What a rule is on the GPU."""

from __future__ import annotations

from typing import Any, NamedTuple


class Rule(NamedTuple):
    """A rule's update and, to run without the host, its scalars; then, where its update waits for
    norms, what is measured, and what completes the scalars, in double: (norm of the parameter, norm
    of what was measured, scalars).
    """

    update: Any
    scalars: Any = None
    measured: Any = None
    completed: Any = None
