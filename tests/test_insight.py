"""fastopt.insight: the range test and what it gives back; statistics watched, drawn, judged."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from support import assert_same_bits
from torch import Tensor, nn

import fastopt
from fastopt.insight import (
    History,
    LayerCheck,
    LayerWarning,
    Live,
    LRCurve,
    Scalars,
    lr_range_test,
    watch,
)

X = torch.linspace(-1, 1, 64 * 6).reshape(64, 6).sin()
Y = torch.arange(64) % 3
BATCHES = [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
# What an optimizer is made with; all in float32 but where weights have corrections.
OPTIMIZERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "SGD": (fastopt.SGD, {"momentum": 0.9}),
    "AdamW": (fastopt.AdamW, {"ema_decay": 0.9, "max_grad_norm": 1.0}),
    "8 bits": (fastopt.Adam, {"state_bits": 8}),
    "bf16+24": (fastopt.AdamW, {"state_bits": 8, "master_weight_bits": 24}),
    "lr tensor": (fastopt.Adam, {"lr": torch.tensor(1e-3), "foreach": False}),
    "torch's": (torch.optim.Adam, {}),
}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loss_fn(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, y = batch
    logits = model(x.to(next(model.parameters()).dtype))
    return nn.functional.cross_entropy(logits.float(), y)


def train(model: nn.Module, optimizer: Any, steps: int) -> list[float]:
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_fn(model, BATCHES[step % 4])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


def made(name: str) -> tuple[nn.Sequential, Any]:
    cls, options = OPTIMIZERS[name]
    model = net().bfloat16() if "bf16" in name else net()
    return model, cls(model.parameters(), **copy.deepcopy(options))


@pytest.mark.parametrize("stepped", [0, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_all_is_given_back(name: str, stepped: int) -> None:
    """A training goes on after a range test as if there had been none, to the bit."""
    ends = []
    for tested in (False, True):
        model, optimizer = made(name)
        train(model, optimizer, stepped)
        rate = optimizer.param_groups[0]["lr"]
        if tested:
            curve = lr_range_test(model, optimizer, loss_fn, BATCHES, steps=20)
            assert len(curve.lrs) > 10
            assert all(p.grad is None for p in model.parameters())
            assert optimizer.param_groups[0]["lr"] is rate
        ends.append((train(model, optimizer, 5), model.state_dict()))
    assert ends[0][0] == ends[1][0]
    for key, value in ends[0][1].items():
        assert_same_bits(value, ends[1][1][key])


def test_all_is_given_back_after_an_error() -> None:
    model, optimizer = made("AdamW")
    train(model, optimizer, 2)
    weights = copy.deepcopy(model.state_dict())

    def breaks(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if float(optimizer.param_groups[0]["lr"]) > 1e-5:
            raise KeyboardInterrupt
        return loss_fn(model, batch)

    with pytest.raises(KeyboardInterrupt):
        lr_range_test(model, optimizer, breaks, BATCHES)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    for key, value in model.state_dict().items():
        assert_same_bits(value, weights[key])


def test_rates() -> None:
    """They grow by equal factors, groups keep their ratio, batches are gone around."""
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[3].parameters()}]
    optimizer = fastopt.SGD(groups, lr=0.2)
    seen, calls = [], []

    def watched(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        seen.append([group["lr"] for group in optimizer.param_groups])
        return loss_fn(model, batch)

    curve = lr_range_test(
        model,
        optimizer,
        watched,
        BATCHES,
        start_lr=1e-4,
        end_lr=1e-2,
        steps=9,
        on_step=lambda: calls.append(None),
    )
    assert curve.lrs == pytest.approx(np.geomspace(1e-4, 1e-2, 9).tolist())
    assert seen == [pytest.approx([lr / 2, lr]) for lr in curve.lrs]
    assert len(calls) == len(curve.losses) == len(curve.raw) == 9
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_ends_where_it_diverges() -> None:
    weight = nn.Parameter(torch.tensor([3.0]))
    optimizer = fastopt.SGD([weight], lr=1.0)
    holder = nn.ParameterList([weight])
    curve = lr_range_test(
        holder, optimizer, lambda model, _: model[0].square().sum(), [0], end_lr=1e3, steps=200
    )
    assert 100 < len(curve.lrs) < 180
    assert 0.05 < curve.suggestion() < 0.2  # w - 2 lr w falls up to a rate of 1
    assert weight.item() == 3.0


def test_one_iterator_is_gone_through_once() -> None:
    model, optimizer = made("SGD")
    assert len(lr_range_test(model, optimizer, loss_fn, iter(BATCHES)).lrs) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_lr": 0.1, "end_lr": 0.1}, "must grow: got start_lr=0.1 and end_lr=0.1"),
        ({"start_lr": 0.0}, "must grow"),
        ({"end_lr": math.nan}, "must grow"),
        ({"steps": 1}, "at least 2, got 1"),
        ({"batches": []}, "batches is empty"),
    ],
)
def test_wrong_range(options: dict[str, Any], message: str) -> None:
    model, optimizer = made("SGD")
    with pytest.raises(ValueError, match=message):
        lr_range_test(model, optimizer, loss_fn, **{"batches": BATCHES, **options})


def test_curve(tmp_path: Path) -> None:
    """Noise does not move the minimum, nor does what comes after it; a NaN is no number."""
    lrs = np.geomspace(1e-6, 1, 100)
    losses = 2 + np.minimum(0, (np.log10(lrs) + 1.5) ** 2 - 1)  # lowest at 10 ** -1.5
    curve = LRCurve(lrs.tolist(), [*losses[:97], 1e9, math.inf, math.nan])
    assert curve.suggestion() == pytest.approx(10**-2.5, rel=0.2)
    assert np.isfinite(curve.losses).all()
    curve.plot().savefig(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").stat().st_size > 5000


def tracked(**options: Any) -> tuple[nn.Sequential, Any]:
    model = net()
    return model, fastopt.AdamW(model.named_parameters(), track_stats=True, **options)


def test_watch() -> None:
    model, optimizer = tracked()
    seen: list[tuple[int, Any]] = []
    with watch(optimizer, lambda step, stats: seen.append((step, stats)), every=3, start=100):
        train(model, optimizer, 7)
        last = seen[-1][1]
        train(model, optimizer, 2)
        assert seen[-1][1] == optimizer.stats() != last
    train(model, optimizer, 3)
    assert [step for step, _ in seen] == [103, 106, 109]
    names = {name for name, _ in model.named_parameters()}
    assert all(stats.keys() == names for _, stats in seen)


def test_watch_shows_no_step_that_was_left_out() -> None:
    model, optimizer = tracked(skip_nonfinite=True)
    history = History()
    watch(optimizer, history)
    train(model, optimizer, 1)
    for p in model.parameters():
        assert p.grad is not None
        p.grad.fill_(math.inf)
    optimizer.step()
    train(model, optimizer, 1)
    assert history.steps == [1, 3]


def test_watch_through_a_wrapper() -> None:
    model, optimizer = tracked()

    class Wrapper:
        def __init__(self) -> None:
            self.optimizer = optimizer
            self.param_groups = optimizer.param_groups

    history = History()
    watch(Wrapper(), history)
    train(model, optimizer, 2)
    assert history.steps == [1, 2]


def test_watch_refuses() -> None:
    model = net()
    with pytest.raises(TypeError, match=r"torch\.optim\.adam\.Adam is none of them"):
        watch(torch.optim.Adam(model.parameters()))
    with pytest.raises(RuntimeError, match="track_stats=True"):
        watch(fastopt.Adam(model.parameters()))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        watch(tracked()[1], every=0)
    with pytest.raises(TypeError, match="object has neither"):
        Scalars(object())


def test_scalars_in_tensorboard(tmp_path: Path) -> None:
    """Read back from its files: every statistic of every parameter of every step."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorBoard's own
        pytest.importorskip("tensorboard", reason="needs the extra: pip install fastopt[insight]")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from torch.utils.tensorboard import SummaryWriter

        model, optimizer = tracked()
        history = History()
        with SummaryWriter(tmp_path) as writer, watch(optimizer, Scalars(writer), history):
            train(model, optimizer, 4)
        read = EventAccumulator(str(tmp_path))
        read.Reload()
        assert len(read.Tags()["scalars"]) == 4 * len(history.values)
        for name, of in history.values.items():
            for key, values in of.items():
                events = read.Scalars(f"{key}/{name}")
                assert [event.step for event in events] == [1, 2, 3, 4]
                assert [event.value for event in events] == pytest.approx(values)


def test_scalars_by_wandbs_interface() -> None:
    class Run:
        def __init__(self) -> None:
            self.rows: list[tuple[dict[str, float], int]] = []

        def log(self, row: dict[str, float], step: int) -> None:
            self.rows.append((row, step))

    model, optimizer = tracked()
    run = Run()
    with watch(optimizer, Scalars(run), every=2):
        train(model, optimizer, 4)
    assert [step for _, step in run.rows] == [2, 4]
    stats = optimizer.stats()
    assert run.rows[-1][0]["update_ratio/0.weight"] == stats["0.weight"]["update_ratio"]
    assert len(run.rows[-1][0]) == 4 * len(stats)


def test_history(tmp_path: Path) -> None:
    """A parameter that joins or leaves later has NaN where there is nothing of it."""
    of = dict.fromkeys(["grad_norm", "update_norm", "weight_norm", "update_ratio"], 1.0)
    history = History()
    history(1, {"a": of})
    history(5, {"a": of, "b": of})
    history(9, {"b": of})
    assert history.steps == [1, 5, 9]
    np.testing.assert_array_equal(history.values["a"]["grad_norm"], [1, 1, math.nan])
    np.testing.assert_array_equal(history.values["b"]["update_ratio"], [math.nan, 1, 1])
    history.plot().savefig(tmp_path / "history.png")
    assert (tmp_path / "history.png").stat().st_size > 5000


def test_live() -> None:
    """A line a parameter, its numbers, the last table left standing."""
    model, optimizer = tracked()
    console = Console(record=True, width=100, force_terminal=True)
    with Live(console) as live, watch(optimizer, live, every=2):
        train(model, optimizer, 4)
    text = console.export_text()
    last = text.rpartition("step 4")[2]
    for name, of in optimizer.stats().items():
        (line,) = (line for line in last.splitlines() if f" {name} " in line)
        assert f"{of['update_ratio']:.1e}" in line


def test_live_shows_those_furthest_from_usual() -> None:
    of = {"grad_norm": 1.0, "update_norm": 1.0, "weight_norm": 1.0}
    ratios = {"usual": 1e-3, "dead": 0.0, "high": 1.0, "infinite": math.inf, "low": 2e-4}
    stats = {name: {**of, "update_ratio": ratio} for name, ratio in ratios.items()}
    console = Console(record=True, width=100)
    console.print(Live(console, lines=3).table(7, stats))
    text = console.export_text()
    assert [name for name in ratios if f" {name} " in text] == ["dead", "high", "infinite"]
    assert "3 of 5 parameters" in text


def test_a_dead_and_an_exploding_layer() -> None:
    """One warning each, again after the layer was well in between."""
    model, optimizer = tracked(lr=1e-3, weight_decay=0.0)
    nn.init.constant_(model[1].bias, -100.0)  # no ReLU passes anything on
    check = LayerCheck(patience=5)
    with watch(optimizer, check), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(model, optimizer, 12)
        said = [str(warning.message) for warning in caught]
        assert {text.split()[0] for text in said} == {
            "0.weight",
            "0.bias",
            "1.weight",
            "1.bias",
            "3.weight",
        }
        assert all("is dead at step 5, for 5 looks: gradient 0" in text for text in said)
        caught.clear()
        nn.init.constant_(model[1].bias, 0.0)
        train(model, optimizer, 3)
        assert not caught
        optimizer.param_groups[0]["lr"] = 10.0
        train(model, optimizer, 6)
        assert all(issubclass(warning.category, LayerWarning) for warning in caught)
        said = [str(warning.message) for warning in caught]
        assert any("3.weight is exploding at step 20" in text for text in said)
        assert all("max_grad_norm" in text for text in said)
