"""What the tests of trainers share: a net, batches, and what two trainings must have alike.

Trainers warn of much that is not ours, on import and later: each module here ignores warnings.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

import fastopt

# Those that take any parameter, as the nets here have them.
CLASSES = [
    cls
    for cls in fastopt.optim.CLASSES
    if hasattr(torch.optim, cls.__name__) and cls is not fastopt.Muon
]
BATCHES = [(torch.randn(8, 6, generator=torch.Generator().manual_seed(k)), k % 3) for k in range(8)]


def torchs(cls: type) -> Any:
    return getattr(torch.optim, cls.__name__)


def net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def loss_of(logits: torch.Tensor, label: int) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(logits.float(), torch.full((len(logits),), label))


def assert_alike(
    ours: Iterable[Any], theirs: Iterable[Any], start: Iterable[Any], tolerance: float = 1e-5
) -> None:
    """The same parameters but for last bits, none of which is where it was."""
    for p, q, before in zip(ours, theirs, start, strict=True):
        torch.testing.assert_close(p, q, rtol=10 * tolerance, atol=tolerance)
        assert not torch.equal(p, before)


def assert_on_engine(optimizer: Any, heading: str) -> None:
    """Whatever is around it, it takes the CPU engine with all it has."""
    found = fastopt.explain(optimizer)
    assert found.optimizer == heading
    assert {bucket.path for bucket in found.buckets} == {"cpu"}
    assert fastopt.memory(optimizer) == found.memory
