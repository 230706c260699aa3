"""The trainings in compact precision: data, statistics, verdicts, what fails. Never times."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from test_benchmarks import Nan

import fastopt
from benchmarks import digits, quality, record
from benchmarks.method import QUICK


def test_digits_are_shifted_and_the_seeds() -> None:
    batches, (images, labels) = digits.digits(seed=3)
    again, (same, _) = digits.digits(seed=3)
    other, _ = digits.digits(seed=4)
    assert images.shape == (len(labels), 1, 8, 8) == (360, 1, 8, 8)
    assert torch.equal(images, same)
    for (inputs, targets), (twin, _), (stranger, _) in islice(
        zip(batches, again, other, strict=True), 2
    ):
        assert inputs.shape == (32, 1, 8, 8)
        assert len(targets) == 32
        assert torch.equal(inputs, twin)
        assert not torch.equal(inputs, stranger)


def test_a_shift_moves_a_digit_by_at_most_a_pixel() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4, 4] = 1
    shifted = digits._shifted(image, torch.tensor([7]), seed=0)
    inputs = torch.cat([next(shifted)[0] for _ in range(10)])
    places = {(y, x) for _, _, y, x in inputs.nonzero().tolist()}
    assert places == {(y, x) for y in (3, 4, 5) for x in (3, 4, 5)}


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    base, other = [1.0, 2.0, 4.0, 3.5], [1.2, 2.1, 4.6, 3.4]
    found = quality.paired({quality.REFERENCE: base, "other": other}).loc["other"]
    low, high = stats.ttest_rel(other, base).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["mean"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.1, 0.2, 0.1, 0.2], "ok"),
        ([9.0, 9.1, 9.0, 9.1], "short"),
        ([-9.0, -9.1, -9.0, -9.1], "short"),  # better, but not where float32 ends
        ([-9.0, 9.0, -9.0, 9.1], "noisy"),
    ],
)
def test_verdicts(differences: list[float], verdict: str) -> None:
    base = [1.0, 2.0, 3.0, 4.0]
    losses = {quality.REFERENCE: base, "a": [x + d for x, d in zip(base, differences, strict=True)]}
    assert quality.paired(losses).loc["a", "verdict"] == verdict


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "ok"),
        ({quality.JUDGED[0]: "short", quality.JUDGED[1]: "noisy"}, "short"),
        ({quality.JUDGED[0]: "noisy"}, "noisy"),
        ({quality.CONTROL: "ok"}, "noisy"),  # a training that tells nothing apart
    ],
)
def test_a_net_is_its_worst_format(changed: dict[str, str], verdict: str) -> None:
    found = dict.fromkeys(quality.FORMATS, "ok") | {quality.CONTROL: "short"} | changed
    assert quality.overall(found) == verdict


def test_formats_are_trained_alike() -> None:
    """What keeps all bits of float32 ends in float32's very loss; another seed does not."""
    task, same = quality.TASKS["mlp"], quality.Format(torch.float32, {"state_bits": 32})
    one = quality.train(task, quality.FORMATS[quality.REFERENCE], seed=1, steps=5)
    assert quality.train(task, same, seed=1, steps=5) == one
    assert quality.train(task, same, seed=2, steps=5).loss != one.loss


def test_a_training_that_ends_in_nan_is_wrong() -> None:
    formats = {**quality.FORMATS, "nan": quality.Format(torch.float32, optimizer=Nan)}
    result = quality.run_task("mlp", QUICK, formats)
    assert (result["verdict"], result["wrong"]) == ("wrong", ["nan"])
    assert "**wrong**" in quality.table({"rows": [result]})["result"].tolist()


def test_eight_bits_apply_to_nearly_all_parameters(quick_benchmarks: tuple[Path, str]) -> None:
    for row in record.load(quick_benchmarks[0] / "quality.json")["rows"]:
        for form, share in row.get("compact", {}).items():
            assert share > 0.9 if "8-bit" in form else share == 0


class _ToNearest(fastopt.AdamW):
    """AdamW whose second moment is rounded to the nearest bfloat16."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for state in self.state.values():
            state["exp_avg_sq"].copy_(state["exp_avg_sq"].bfloat16())


def test_decay_tells_float32_from_rounding_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = quality.decay(None, steps=300)
    assert exact == pytest.approx([1.0] * len(quality.SCALES), abs=1e-3)
    monkeypatch.setattr(fastopt, "AdamW", _ToNearest)
    assert min(quality.decay(None, steps=300)) > 1 + quality.ALLOWED
