"""The benchmark of the fused tail: torch's own passes are right, a missing pass is seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import contestants, method, tail
from benchmarks.problem import DTYPES

SHAPES = [(257,), (33, 5)]


@pytest.mark.parametrize("foreach", [True, False])
def test_torchs_passes_are_right(foreach: bool) -> None:
    problem = tail.Tail(SHAPES, tail.AVERAGED, DTYPES["fp32"])
    assert contestants.build(tail.composition(foreach), problem).error <= 1


@pytest.mark.parametrize("missing", ["max_grad_norm", "ema_decay"])
def test_a_missing_pass_is_wrong(missing: str) -> None:
    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        off = {"max_grad_norm": torch.inf, "ema_decay": 0.5}[missing]
        return tail.composition(True)(cls, params, {**options, missing: off})

    problem = tail.Tail(SHAPES, tail.AVERAGED, DTYPES["fp32"])
    assert contestants.build(make, problem).error > 1
    row = tail.Row("mlp", "clip+AdamW+EMA", "fp32", "passes", 1.0)
    passes = tail.ENTRANTS["passes"] | {"fastopt": make}
    result = tail.run_row(row, method.QUICK, {"passes": passes})
    assert (result["verdict"], result["wrong"]) == ("wrong", ["fastopt"])
