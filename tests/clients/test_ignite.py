"""ignite: its supervised trainer, schedules of groups, checkpoints."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import BATCHES, CLASSES, assert_alike, assert_on_engine, net, torchs

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("ignite")
    import ignite.distributed as idist
    from ignite.engine import Events, create_supervised_trainer
    from ignite.handlers import Checkpoint, DiskSaver, PiecewiseLinear

pytestmark = pytest.mark.filterwarnings("ignore")

DATA = [(x, torch.full((len(x),), label)) for x, label in BATCHES]


def made(cls: Any, **own: Any) -> dict[str, Any]:
    """What a run has, by the names under which a checkpoint keeps it."""
    model = idist.auto_model(net())
    optimizer = idist.auto_optim(cls(model.parameters(), lr=0.05, **own))
    trainer = create_supervised_trainer(
        model, optimizer, torch.nn.CrossEntropyLoss(), gradient_accumulation_steps=2
    )
    schedule = PiecewiseLinear(optimizer, "lr", [(0, 0.05), (16, 0.01)])
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    return {"model": model, "optimizer": optimizer, "trainer": trainer, "schedule": schedule}


@pytest.mark.parametrize("cls", CLASSES)
def test_training(cls: Any) -> None:
    runs = made(cls), made(torchs(cls))
    for run in runs:
        run["trainer"].run(DATA, max_epochs=2)
    assert_on_engine(runs[0]["optimizer"], cls.__name__)
    assert runs[0]["optimizer"].param_groups[0]["lr"] == pytest.approx(0.0125)
    assert_alike(*(m.parameters() for m in (runs[0]["model"], runs[1]["model"], net())))


def test_checkpoints(tmp_path: Path) -> None:
    own = {"max_grad_norm": 0.1, "ema_decay": 0.9}
    whole, resumed = made(fastopt.AdamW, **own), made(fastopt.AdamW, **own)
    checkpoint = Checkpoint(whole, DiskSaver(str(tmp_path)), filename_pattern="saved.pt")
    whole["trainer"].add_event_handler(Events.EPOCH_COMPLETED(once=1), checkpoint)
    whole["trainer"].run(DATA, max_epochs=2)
    Checkpoint.load_objects(resumed, checkpoint=torch.load(tmp_path / "saved.pt"))
    resumed["trainer"].run(DATA, max_epochs=2)
    for p, q in zip(whole["model"].parameters(), resumed["model"].parameters(), strict=True):
        assert torch.equal(p, q)
        averages = whole["optimizer"].state[p]["ema"], resumed["optimizer"].state[q]["ema"]
        assert torch.equal(*averages)
