"""Optimizers that torch lacks against other packages' for the same rules, in float64.

Each row is a package's class, and arguments by which both mean the same. What they are known to
differ in is said beside the row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import fastopt

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 20


class Pair(NamedTuple):
    """Our class, the peer's module and class, the arguments of both, ours alone, the peer's."""

    ours: type
    module: str
    name: str
    both: dict[str, Any] = {}  # noqa: RUF012
    own: dict[str, Any] = {}  # noqa: RUF012
    theirs: dict[str, Any] = {}  # noqa: RUF012
    close: float = 1e-12  # relative to 1, the size of the numbers

    def __str__(self) -> str:
        return f"{self.module}.{self.name}-{'-'.join({**self.both, **self.own}) or 'default'}"


DECAY = {"weight_decay": 0.1}
OPTIMIZER = "pytorch_optimizer"
QUIET = {"print_change_log": False, "rectify": False}
AVERAGE = {"warmup_steps": 5, "r": 1.0, "weight_lr_power": 1.0}
PAIRS = [
    *(
        Pair(fastopt.Lion, module, "Lion", {"lr": 1e-2, **more})
        for module in (OPTIMIZER, "lion_pytorch", "optimi")
        for more in ({}, DECAY)
    ),
    Pair(fastopt.AdaBelief, OPTIMIZER, "AdaBelief", {"lr": 1e-2}),
    Pair(fastopt.AdaBelief, OPTIMIZER, "AdaBelief", {"lr": 1e-2, "eps": 1e-3, **DECAY}),
    Pair(
        fastopt.AdaBelief,
        OPTIMIZER,
        "AdaBelief",
        DECAY,
        {"decoupled_weight_decay": False},
        {"weight_decouple": False},
    ),
    Pair(fastopt.AdaBelief, "adabelief_pytorch", "AdaBelief", {"lr": 1e-2}, theirs=QUIET),
    Pair(
        fastopt.AdaBelief,
        "adabelief_pytorch",
        "AdaBelief",
        {"eps": 1e-3, "amsgrad": True, **DECAY},
        {"decoupled_weight_decay": False},
        {"weight_decouple": False, **QUIET},
    ),
    Pair(fastopt.AdEMAMix, OPTIMIZER, "AdEMAMix", {"lr": 1e-2, "alpha": 5.0}),
    Pair(
        fastopt.AdEMAMix,
        OPTIMIZER,
        "AdEMAMix",
        {"lr": 1e-2, "betas": (0.8, 0.95, 0.99), "alpha": 5.0, **DECAY},
        theirs={"weight_decouple": True},
    ),
    # The paper's beta3 without the 1e-8 that its authors' code adds to each beta.
    Pair(
        fastopt.AdEMAMix,
        OPTIMIZER,
        "AdEMAMix",
        {"lr": 1e-2, "alpha": 5.0},
        {"alpha_warmup": 12, "beta3_warmup": 12},
        {"t_alpha_beta3": 12},
        close=1e-6,
    ),
    Pair(fastopt.Adan, OPTIMIZER, "Adan", {"lr": 1e-2}),
    Pair(fastopt.Adan, OPTIMIZER, "Adan", {"betas": (0.9, 0.8, 0.95), "eps": 1e-3, **DECAY}),
    Pair(fastopt.Adan, OPTIMIZER, "Adan", DECAY, {"no_prox": True}, {"weight_decouple": True}),
    Pair(fastopt.Adan, "optimi", "Adan", {"lr": 1e-2, **DECAY}, {"eps": 1e-6}),
    # (optimi 0.3 does not hand its adam_wd on: without prox it has no decay to compare.)
    *(
        Pair(ours, module, name, more, close=close)
        for ours, module, name, close in (
            (fastopt.SGDScheduleFree, "schedulefree", "SGDScheduleFree", 1e-12),
            (fastopt.SGDScheduleFree, OPTIMIZER, "ScheduleFreeSGD", 1e-12),
            (fastopt.AdamWScheduleFree, "schedulefree", "AdamWScheduleFree", 1e-12),
            # pytorch_optimizer adds 1e-15 to the square, under the root.
            (fastopt.AdamWScheduleFree, OPTIMIZER, "ScheduleFreeAdamW", 1e-9),
        )
        for more in ({"lr": 0.1}, {"lr": 0.1, **DECAY, **AVERAGE})
    ),
]


@pytest.fixture(autouse=True)
def doubles() -> Iterator[None]:
    """Numbers that parameters carry are float64, as the peers' are."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def parameters() -> list[Tensor]:
    made = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(s, generator=made)) for s in ((3, 17), (40,))]


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_trajectory(pair: Pair) -> None:
    """The same parameters after each of 20 steps, of gradients that depend on the parameters."""
    module = pytest.importorskip(pair.module)
    ours, theirs = parameters(), parameters()
    made = pair.ours(ours, **pair.both, **pair.own)
    peer = getattr(module, pair.name)(theirs, **pair.both, **pair.theirs)
    averages = hasattr(made, "train")
    made_noise = torch.Generator().manual_seed(1)
    for k in range(STEPS):
        if averages:
            made.train(), peer.train()
        for p, q in zip(ours, theirs, strict=True):
            noise = torch.randn(p.shape, generator=made_noise)
            p.grad, q.grad = p.detach() + noise, q.detach() + noise
        made.step()
        peer.step()
        if averages and k % 3 == 2:
            made.eval(), peer.eval()
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=pair.close, atol=pair.close)
    assert {bucket.path for bucket in fastopt.explain(made).buckets} == {"cpu"}
