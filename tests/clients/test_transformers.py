"""Hugging Face's Trainer with our optimizers: clipping, mixed precision, checkpoints, patch()."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import CLASSES, assert_alike, assert_on_engine, torchs

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = torch.randint(32, (16, 8), generator=torch.Generator().manual_seed(0))
DATA = [{"input_ids": row, "labels": row} for row in TEXT]


def tiny() -> Any:
    torch.manual_seed(0)
    # No biases: an adaptive step makes much of the rounding in a key bias's gradient, which is 0.
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    return transformers.LlamaForCausalLM(config)


def train(
    folder: Path, cls: Any = None, own: Any = None, resume: Path | None = None, **arguments: Any
) -> Any:
    """A Trainer after 8 steps."""
    defaults = {"max_grad_norm": 0.5, "save_strategy": "no"}
    trainer = transformers.Trainer(
        model=tiny(),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            per_device_train_batch_size=4,
            num_train_epochs=2,
            learning_rate=0.01,  # of the schedule, and of what the Trainer itself makes
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            **{**defaults, **arguments},
        ),
        train_dataset=DATA,
        optimizer_cls_and_kwargs=None if cls is None else (cls, {"lr": 0.01, **(own or {})}),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer


def assert_trained_alike(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    models = (ours.model, theirs.model, tiny())
    assert_alike(*(model.parameters() for model in models), tolerance=tolerance)


@pytest.mark.parametrize("cls", CLASSES)
def test_clipping(cls: Any, tmp_path: Path) -> None:
    """The Trainer's, or ours where its own is off: torch's class with the Trainer's."""
    theirs = train(tmp_path, torchs(cls))
    unclipped = train(tmp_path, torchs(cls), max_grad_norm=0)
    assert any(
        not torch.equal(p, q)
        for p, q in zip(theirs.model.parameters(), unclipped.model.parameters(), strict=True)
    )
    for own, arguments in (({}, {}), ({"max_grad_norm": 0.5}, {"max_grad_norm": 0})):
        ours = train(tmp_path, cls, own, **arguments)
        assert_on_engine(ours.optimizer, f"{cls.__name__} (in AcceleratedOptimizer)")
        assert_trained_alike(ours, theirs)


def test_bfloat16(tmp_path: Path) -> None:
    theirs = train(tmp_path, torch.optim.AdamW, bf16=True)
    ours = train(tmp_path, fastopt.AdamW, bf16=True)
    assert_on_engine(ours.optimizer, "AdamW (in AcceleratedOptimizer)")
    assert_trained_alike(ours, theirs, tolerance=1e-3)


OWN = {"max_grad_norm": 0.5, "ema_decay": 0.9, "state_bits": 8, "min_8bit_size": 64}


@pytest.mark.parametrize("own", [{}, OWN], ids=["plain", "passes"])
def test_resuming(own: dict[str, Any], tmp_path: Path) -> None:
    """A checkpoint continues to the bit, averages and codes of a byte too."""
    whole = train(tmp_path, fastopt.AdamW, own, save_strategy="steps", save_steps=4)
    resumed = train(tmp_path / "resumed", fastopt.AdamW, own, resume=tmp_path / "checkpoint-4")
    assert resumed.state.global_step == 8
    for p, q in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(p, q)
        states = whole.optimizer.state[p], resumed.optimizer.state[q]
        assert states[0].keys() == states[1].keys() > {"exp_avg"}
        for name, state in states[0].items():
            assert torch.equal(state, states[1][name])


def test_resuming_what_torch_has_trained(tmp_path: Path) -> None:
    theirs = train(tmp_path, torch.optim.AdamW, save_strategy="steps", save_steps=4)
    ours = train(tmp_path / "resumed", fastopt.AdamW, resume=tmp_path / "checkpoint-4")
    assert_trained_alike(ours, theirs)


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("adamw_torch", fastopt.AdamW),
        ("adamw_torch_fused", fastopt.AdamW),
        ("sgd", fastopt.SGD),
        ("adagrad", fastopt.Adagrad),
        ("rmsprop", fastopt.RMSprop),
    ],
)
def test_patch(name: str, cls: Any, tmp_path: Path) -> None:
    """The Trainer's own names."""
    theirs = train(tmp_path, optim=name)
    assert type(theirs.optimizer.optimizer) is torchs(cls)
    with fastopt.patch():
        ours = train(tmp_path, optim=name)
    assert_on_engine(ours.optimizer, f"{cls.__name__} (in AcceleratedOptimizer)")
    assert_trained_alike(ours, theirs)
