"""The compiled engine on this CPU: what it leaves to torch, what it does with a parameter."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import _core, ranks


def lacks(group: dict[str, Any]) -> str:
    """Why the engine cannot take a group's parameters, or an empty string."""
    return "capturable=True" if group.get("capturable") else ""


def how(param: Tensor, state: dict[str, Any]) -> str:
    """What it does with a parameter, for explain()."""
    return f"compiled engine, {_core.isa()}{ranks.describe(param)}"
