"""What trainers put around an optimizer, known by where they keep it and not by who they are."""

from __future__ import annotations

from typing import Any

# Accelerate, DeepSpeed; Lightning, Fabric; torch's ZeroRedundancyOptimizer; timm's Lookahead.
HELD_IN = ("optimizer", "_optimizer", "optim", "_base_optimizer")


def unwrapped(optimizer: Any) -> tuple[Any, list[str]]:
    """The optimizer that steps, and the class names of what is around it, the outermost first."""
    around: list[str] = []
    while True:
        # Not getattr: many wrappers pass on what the optimizer itself answers.
        own = getattr(optimizer, "__dict__", {})
        held = [own[name] for name in HELD_IN if hasattr(own.get(name), "param_groups")]
        if not held:
            return optimizer, around
        around.append(type(optimizer).__name__)
        optimizer = held[0]
