"""Lightning's Trainer and Fabric train with our optimizers as with torch's."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import assert_alike, assert_on_engine, torchs

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lightning = pytest.importorskip("lightning")
    from lightning.fabric.plugins.precision import MixedPrecision as FabricMixedPrecision
    from lightning.pytorch.plugins import MixedPrecision

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore")

OURS = [fastopt.SGD, fastopt.Adam, fastopt.AdamW, fastopt.RMSprop]
BATCHES = [(torch.randn(8, 6, generator=torch.Generator().manual_seed(k)), k % 3) for k in range(6)]


class Net(lightning.LightningModule):  # type: ignore[name-defined,misc]
    def __init__(self, cls: Any, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)
        )
        self.cls, self.options = cls, options

    def training_step(self, batch: Any) -> torch.Tensor:
        x, y = batch
        target = torch.full((len(x),), int(y))
        return torch.nn.functional.cross_entropy(self.body(x).float(), target)

    def configure_optimizers(self) -> Any:
        return self.cls(self.parameters(), lr=0.05, **self.options)


def fit(net: Net, start: Path | None = None, epochs: int = 2, **options: Any) -> Any:
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(net, torch.utils.data.DataLoader(BATCHES, batch_size=None), ckpt_path=start)
    return trainer


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
@pytest.mark.parametrize("cls", OURS)
def test_trainer(cls: Any, precision: str, clip: float | None) -> None:
    """As with torch's own class, also where Lightning clips."""
    nets = [Net(cls), Net(torchs(cls))]
    for net in nets:
        fit(net, precision=precision, gradient_clip_val=clip)
    assert_on_engine(nets[0].optimizers(), f"{cls.__name__} (in Lightning{cls.__name__})")
    assert_alike(*(net.parameters() for net in [*nets, Net(cls)]))


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("cls", OURS)
def test_trainer_with_a_scaler(cls: Any, clip: float | None) -> None:
    """float16 with GradScaler, whose first scales overflow: unscaled, clipped, stepped."""
    nets = [Net(cls), Net(torchs(cls))]
    for net in nets:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
        fit(net, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], gradient_clip_val=clip)
        assert scaler.get_scale() < 2.0**24
    assert_alike(*(net.parameters() for net in [*nets, Net(cls)]), tolerance=1e-4)


def test_resuming(tmp_path: Path) -> None:
    """From Lightning's checkpoint, to the bit, averages too."""
    own = {"max_grad_norm": 0.1, "ema_decay": 0.9}
    whole, half, resumed = (Net(fastopt.AdamW, **own) for _ in range(3))
    fit(whole)
    fit(half, epochs=1).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, start=tmp_path / "half.ckpt")
    averages = [list(net.optimizers().ema_parameters()) for net in (whole, resumed)]
    for tensors in ([net.parameters() for net in (whole, resumed)], averages):
        for p, q in zip(*tensors, strict=True):
            assert torch.equal(p, q)


def test_clipping_what_the_step_unscales() -> None:
    """Lightning refuses it of fused optimizers, torch's and ours; our own clipping does it."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        fit(Net(fastopt.AdamW, fused=True), plugins=[plugin], gradient_clip_val=0.5)
    net = Net(fastopt.AdamW, fused=True, max_grad_norm=0.5)
    fit(net, plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))])


def test_what_a_trainer_sees_of_the_optimizer() -> None:
    """Lightning's wrapper tells the norm and the statistics, and swaps the averages."""
    seen = []

    class Watching(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            wrapper = self.optimizers()
            assert type(wrapper).__name__ == "LightningAdamW"
            seen.append((float(wrapper.grad_norm), wrapper.stats()))
            before = self.body[0].weight.detach().clone()
            with wrapper.swap_ema():
                averaged = self.body[0].weight
                assert torch.equal(before, averaged) == (len(seen) == 1)  # where it begins
                with pytest.raises(RuntimeError, match=r"step\(\) inside swap_ema\(\)"):
                    wrapper.step()
            assert torch.equal(before, self.body[0].weight)

    fit(Watching(fastopt.AdamW, max_grad_norm=0.1, track_stats=True, ema_decay=0.5))
    assert len(seen) == 2 * len(BATCHES)
    assert all(norm > 0 and stats for norm, stats in seen)


@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("cls", OURS)
def test_fabric(cls: Any, precision: str, clip: float | None) -> None:
    """As with torch's own class, scaled, unscaled, clipped by Fabric."""
    made = []
    for each in (cls, torchs(cls)):
        chosen: dict[str, Any] = {"precision": precision}
        if precision == "16-mixed":
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)  # overflows at first
            chosen = {"plugins": [FabricMixedPrecision("16-mixed", "cpu", scaler)]}
        fabric = lightning.Fabric(accelerator="cpu", devices=1, **chosen)
        net = Net(each)
        model, optimizer = fabric.setup(net.body, net.configure_optimizers())
        for x, y in BATCHES:
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x).float(), torch.full((8,), y))
            fabric.backward(loss)
            if clip is not None:
                fabric.clip_gradients(model, optimizer, max_norm=clip, error_if_nonfinite=False)
            optimizer.step()
        if each is cls:
            assert_on_engine(optimizer, f"{cls.__name__} (in Fabric{cls.__name__})")
        assert precision != "16-mixed" or scaler.get_scale() < 2.0**20
        made.append(net)
    tolerance = 1e-4 if precision == "16-mixed" else 1e-5
    assert_alike(*(net.parameters() for net in [*made, Net(cls)]), tolerance=tolerance)


def test_fabrics_wrapper() -> None:
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    net = Net(fastopt.SGD, max_grad_norm=0.1, track_stats=True, skip_nonfinite=True, ema_decay=0.5)
    model, optimizer = fabric.setup(net.body, net.configure_optimizers())
    fabric.backward(model(BATCHES[0][0]).sum())
    optimizer.step()
    assert optimizer.grad_norm > 0
    assert len(optimizer.stats()) == 4
    with optimizer.swap_ema(), pytest.raises(RuntimeError, match="swap_ema"):
        optimizer.step()
    next(iter(net.parameters())).grad[0] = torch.nan
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert optimizer.stats() == {}
