"""The trainings of the benchmarks: text, nets, equal losses, a wrong optimizer. Never times."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch
from test_benchmarks import Nan, OneBetaOff, maker_of

from benchmarks import contestants, method, record, text, train


def test_text_is_python_and_its_batches_are_successors() -> None:
    codes = text.source_text(10_000)
    assert len(codes) == 10_000
    assert "import " in bytes(codes.tolist()).decode("ascii")
    for (inputs, targets), (again, _) in islice(
        zip(text.text_batches(seed=3), text.text_batches(seed=3), strict=True), 2
    ):
        assert inputs.shape == targets.shape == (text.BATCH, text.CONTEXT)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal(inputs, again)


def test_the_transformer_does_not_see_what_it_is_to_predict() -> None:
    torch.manual_seed(0)
    net = text.Transformer()
    inputs = torch.randint(text.VOCABULARY, (1, 20))
    changed = inputs.clone()
    changed[0, 12] = (changed[0, 12] + 1) % text.VOCABULARY
    before, after = net(inputs), net(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_gap_is_relative_and_keeps_nan() -> None:
    assert train.gap([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert math.isnan(train.gap([1.0, math.nan], [1.0, 4.0]))


@pytest.mark.parametrize("wrong", [partial(OneBetaOff, betas=(0.91, 0.999)), Nan])
def test_a_training_with_other_losses_is_wrong(wrong: Callable[..., torch.optim.Adam]) -> None:
    makers = contestants.MAKERS | {"fastopt": maker_of(wrong)}
    result = train.run_row(train.Row("mlp", "adam"), method.QUICK, makers)
    assert (result["verdict"], result["wrong"]) == ("wrong", ["fastopt"])
    assert "fastopt" not in result["samples"]


def test_quick_trainings_write_both_parts_of_every_step(quick_benchmarks: tuple[Path, str]) -> None:
    for row in record.load(quick_benchmarks[0] / "train.json")["rows"]:
        assert row["samples"].keys() == row["around"].keys() == {"fastopt", *row["against"]}
        assert {len(times) for times in row["samples"].values()} == {row["steps"] - train.WARM_UP}
