"""One step of a program, and whether it was right: the oracles together."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from memory import Copy, Snapshot, apart, bits, parameters, plain, tangled
from reference import Reference
from torch import Tensor
from twin import Loop, Twin

import fastopt
from fastopt.arguments import setting
from fastopt.routes import routes_of

# What fastopt documents that it refuses, and torch does not know.
DOCUMENTED = ("does not combine", "eps_in_sqrt=True needs", "is expanded")


class Wrong(AssertionError):
    """A step that was not what it should be."""


class Trial:
    """What is known before a step. `judge` raises Wrong where the step was none of:

    - done, with the references' bits where the engine took it, with torch's own where torch did,
      and near torch's for-loop in double wherever that means the same;
    - refused, as torch refuses it, or as is documented, and nothing has changed, unless it was
      torch's own step that refused.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.paths = self.explained()
        self.tangled, self.apart = tangled(optimizer), apart(optimizer)
        self.snapshot = Snapshot(optimizer)
        self.reference = Reference(optimizer)
        self.loop = Loop(optimizer, fill=self.filled())
        self.own = Twin(optimizer, Copy(), loop=False)
        self.skipped_steps = optimizer.skipped_steps

    def explained(self) -> set[str]:
        try:
            buckets = fastopt.explain(self.optimizer).buckets
        except RuntimeError:
            return {"refused"}
        return {bucket.path for bucket in buckets}

    def filled(self) -> list[Tensor]:
        """The parameters that do not take torch's own step."""
        if "refused" in self.paths:
            return []
        routed = zip(parameters(self.optimizer), routes_of(self.optimizer), strict=True)
        return [p for p, route in routed if route.backend != "torch"]

    @property
    def by_engine(self) -> bool:
        return self.paths == {"cpu"} and not self.tangled

    def refused_by_torch(self) -> str:
        if not self.loop.knows:
            return ""
        try:
            self.loop.step()
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return ""

    def run(self, step: Callable[[], Any], must_raise: bool = False) -> None:
        try:
            step()
        except Exception as error:
            self.judge_refusal(error, must_raise)
        else:
            if must_raise:
                raise Wrong("a step that must be refused was taken")
            self.judge()

    def judge_refusal(self, error: Exception, expected: bool = False) -> None:
        if "torch" in self.paths and "No parameter was changed" not in str(error):
            return  # torch's own step, which refuses in the middle of it, as is documented
        check_unchanged(self.snapshot, self.optimizer, error)
        known = expected or self.tangled or any(text in str(error) for text in DOCUMENTED)
        if not known and not self.refused_by_torch():
            raise Wrong("torch takes this step, fastopt refused it") from error

    def judge(self) -> None:
        refusal = self.refused_by_torch()
        if refusal:
            raise Wrong(f"torch refuses this step ({refusal}), fastopt took it")
        if "refused" in self.paths:
            raise Wrong("explain() says that the step is refused, and it was taken")
        if self.by_engine:
            self.judge_bits()
        elif self.paths == {"torch"} and self.own.bare:
            self.own.step()
            self.expect(own_differences(self.own, self.optimizer), "torch's own step")
            return  # how near that is to its loop in double is torch's business
        if self.loop.knows:
            # On torch's path, 16 bits are rounded, and lost, after every operation; where memory
            # is shared, between two turns.
            halves = "torch" not in self.paths and self.apart
            found = self.loop.differences(self.optimizer, halves)
            self.expect(found, "torch's for-loop in double")

    def judge_bits(self) -> None:
        reference, optimizer = self.reference, self.optimizer
        if reference.norm is not None:
            norm = optimizer._record.last.grad_norm  # in double, as the engine clips by it
            near = math.isclose(norm, reference.norm, rel_tol=0 if reference.dense else 1e-12)
            if not near and not math.isnan(norm + reference.norm):
                raise Wrong(f"the gradients' norm is {norm}, should be {reference.norm}")
            reference.norm = norm
        reference.step()
        self.expect(reference.differences(optimizer), "the reference")
        if optimizer.skipped_steps != self.skipped_steps + reference.skipped:
            raise Wrong(f"skipped_steps is {optimizer.skipped_steps}, was {self.skipped_steps}")
        if self.apart and any(setting(group, "track_stats") for group, _ in reference.groups):
            self.expect(self.stats_differences(), "the statistics")

    def was_taken(self) -> bool:
        """Whether the step has happened, in all of its memory."""
        self.reference.step()
        return not self.reference.differences(self.optimizer)

    def stats_differences(self) -> list[str]:
        """Of a step that was taken: the norms that stats() tells, against those in double."""
        stats, found = self.optimizer.stats(), []
        places = [
            (f"{i}.{k}", group, p, g)
            for i, (group, pairs) in enumerate(self.reference.groups)
            for k, (p, g) in enumerate(pairs)
        ]
        for index, (name, group, p, g) in enumerate(places):
            if (
                g is None
                or not setting(group, "track_stats")
                or not p.numel()
                or self.reference.skipped
            ):
                continue
            before = self.snapshot.before[f"parameter {index}"].as_strided(
                p.size(), p.stride(), p.storage_offset()
            )
            old = self.snapshot.before[f"gradient {index}"].as_strided(
                g.size(), g.stride(), g.storage_offset()
            )
            old, before, now = (x.to(torch.complex128) for x in (old, before, p.detach()))
            norms = [x.abs().norm() for x in (old, now - before, now)]
            if not all(norm.isfinite() for norm in norms):
                continue
            expected = dict(zip(("grad_norm", "update_norm", "weight_norm"), norms, strict=True))
            for key, norm in expected.items():
                tolerance = 1e-3 * norm + 1e-6 * norms[2]
                if abs(stats.get(name, {}).get(key, -1.0) - norm) > tolerance:
                    found.append(f"{key} of {name}: {stats.get(name)}, should be {norm}")
        return found

    def expect(self, differences: list[str], what: str) -> None:
        if differences:
            raise Wrong(f"not {what}: " + "\n".join(differences)[:3000])


def check_unchanged(snapshot: Snapshot, optimizer: torch.optim.Optimizer, error: Exception) -> None:
    """After a refused step."""
    changes = snapshot.changes(optimizer)
    if changes:
        raise Wrong("refused, and changed: " + "\n".join(changes)[:3000]) from error
    if len(str(error)) >= 1000:
        raise Wrong(f"a message of {len(str(error))} characters") from error


def own_differences(twin: Twin, optimizer: torch.optim.Optimizer) -> list[str]:
    found = []
    for i, p in enumerate(parameters(optimizer)):
        ours = {"parameter": p, **optimizer.state.get(p, {})}
        for name, t in twin.results(p).items():
            if plain(t) and plain(ours.get(name)) and not torch.equal(bits(ours[name]), bits(t)):
                found.append(f"{name} of {i}: {ours[name]}, should be {t}")
    return found
