"""What an optimizer remembers beside torch's attributes, in one object.

Trainers wrap optimizers in objects that imitate them: Lightning's and Fabric's are of a class
derived from ours but never initialised, and pass on what they lack; others copy `__dict__`. Both
reach this one object, so that no wrapper has a last step, a count or a swap of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ..plan import Plan, version
from ..precision import LOW
from ..ranks import local
from ._shares import Shares

# A parameter, its version, its correction and what that was.
Dropped = tuple[torch.Tensor, int, torch.Tensor, torch.Tensor]
Blank = tuple[torch.Tensor, str, torch.Tensor]  # a parameter, the name of a state, and the state


@dataclass(frozen=True)
class Summary:
    """The last step, where no plan tells of it: it was left out, with what was measured before that
    was known, or taken share by share.
    """

    grad_norm: float | torch.Tensor | None
    stats: Sequence[tuple[str, float, float, float]] = ()


@dataclass(eq=False)
class Record:
    """Neither copied nor pickled with its optimizer, but for the count of skipped steps."""

    plan: Plan | None = None  # how to step, until something asks for another way
    last: Plan | Summary | None = None  # the last step, also where its plan serves no other
    swapped: bool = False  # inside swap_ema()
    skipped: int = 0  # steps that skip_nonfinite left out, as far as the host knows
    skips: dict[torch.device, torch.Tensor] = field(default_factory=dict)  # counted on devices

    shares: Shares | None = None  # of the step within backward()
    norm_group: torch.distributed.ProcessGroup | None = None
    # Parameters that have a correction, each with its version after the last step.
    corrected: dict[torch.Tensor, int] = field(default_factory=dict)
    # States that hold nothing yet, with their versions, by parameter and name.
    blank: dict[torch.Tensor, dict[str, tuple[torch.Tensor, int]]] = field(default_factory=dict)

    def begin_blank(
        self, created: Iterable[tuple[torch.Tensor, Mapping[str, torch.Tensor | None]]]
    ) -> None:
        for param, states in created:
            kept = {name: (t, version(local(t))) for name, t in states.items() if t is not None}
            self.blank.setdefault(param, {}).update(kept)

    def drop_blank(
        self, states: MutableMapping[torch.Tensor, dict[str, Any]], params: Iterable[torch.Tensor]
    ) -> list[Blank]:
        """Take away, of these parameters, the states that hold nothing yet: the first step makes
        new ones, as if nobody had asked for them. What somebody has written to or replaced, as
        loading a checkpoint does, stays. Returned is what undoes this.
        """
        dropped: list[Blank] = []
        for param in params:
            held = states.get(param, {})
            for name, (made, before) in self.blank.pop(param, {}).items():
                if held.get(name) is made and version(local(made)) == before:
                    dropped.append((param, name, made))
                    del held[name]
            if not held:
                states.pop(param, None)
        return dropped

    def put_back(
        self, states: MutableMapping[torch.Tensor, dict[str, Any]], dropped: Sequence[Blank]
    ) -> None:
        for param, name, made in dropped:
            states.setdefault(param, {})[name] = made
            self.begin_blank([(param, {name: made})])

    def drop_stale_corrections(self, state: Mapping[torch.Tensor, dict[str, Any]]) -> list[Dropped]:
        """A parameter that was written to since the last step has nothing left beside its 16 bits;
        returned is what undoes this, should the step be refused.
        Of one that has just been loaded nobody knows: model and optimizer are taken to belong
        together, in whichever order they were loaded.
        """
        dropped: list[Dropped] = []
        for param, before in self.corrected.items():
            low = state[param].get(LOW) if param in state else None
            if low is not None and version(param) != before:
                dropped.append((param, version(param), low, low.clone()))
                low.zero_()
        return dropped

    @staticmethod
    def take_back(dropped: Sequence[Dropped]) -> None:
        """Not where the step came to write: its version tells."""
        for param, now, low, kept in dropped:
            if version(param) == now:
                low.copy_(kept)

    def skips_on(self, device: torch.device) -> torch.Tensor:
        """The count of steps left out that a device keeps, as the host cannot know."""
        if device not in self.skips:
            self.skips[device] = torch.zeros((), dtype=torch.int64, device=device)
        return self.skips[device]

    @property
    def skipped_steps(self) -> int:
        """Those of the host and of the devices, for which it waits."""
        return self.skipped + sum(int(count) for count in self.skips.values())
