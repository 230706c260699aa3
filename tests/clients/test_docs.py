"""docs/trainers.md: each block is run against the real package, and the engine steps."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from alike import net
from processes import run
from torch.utils.data import DataLoader, TensorDataset

import fastopt
from fastopt.wrappers import unwrapped

pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text(encoding="utf-8")
# By the section: the package, where its blocks leave the optimizer, what explain() calls that.
ACCELERATED = "AdamW (in AcceleratedOptimizer)"
SECTIONS = {
    "Hugging Face Trainer": ("transformers", "trainer.optimizer", ACCELERATED),
    "Accelerate": ("accelerate", "optimizer", ACCELERATED),
    "Lightning": ("lightning", "module.optimizers()", "AdamW (in LightningAdamW)"),
    "Fabric": ("lightning", "optimizer", "AdamW (in FabricAdamW)"),
    "timm": ("timm", "optimizer", "AdamW"),
    "torchtune and torchtitan": ("torch", "optimizer", "AdamW"),
    "skorch": ("skorch", "net.optimizer_", "AdamW"),
    "ignite": ("ignite", "optimizer", "AdamW"),
    "Stable-Baselines3": ("stable_baselines3", "agent.policy.optimizer", "Adam"),
    "DeepSpeed": ("deepspeed", "optimizer", "AdamW (in DeepSpeedZeroOptimizer)"),
    "ZeroRedundancyOptimizer": ("torch", "optimizer", "AdamW (in ZeroRedundancyOptimizer)"),
    "torch-lr-finder": ("torch_lr_finder", "optimizer", "AdamW"),
}
UNTRAINED = ("timm", "torchtune and torchtitan", "torch-lr-finder")  # in the end
IN_A_GROUP = ("DeepSpeed", "ZeroRedundancyOptimizer")  # of processes


def sections() -> dict[str, list[str]]:
    """The blocks by their headings."""
    parts = re.split(r"^## (.*)\n", TEXT, flags=re.M)[1:]
    blocks = [re.findall(r"^```python\n(.*?)^```", part, re.M | re.S) for part in parts[1::2]]
    return dict(zip(parts[::2], blocks, strict=True))


def names(section: str) -> dict[str, Any]:
    """What the blocks take for given."""
    x, y = torch.randn(32, 6), torch.arange(32) % 3
    given: dict[str, Any] = {
        "fastopt": fastopt,
        "model": net(),
        "batches": DataLoader(TensorDataset(x, y), batch_size=8),
        "cross_entropy": torch.nn.functional.cross_entropy,
        "X": x.numpy(),
        "Y": y.numpy(),
    }
    if section == "Hugging Face Trainer":
        from test_transformers import DATA, tiny

        given |= {"model": tiny(), "dataset": DATA}
    if section == "Stable-Baselines3":
        from test_stable_baselines3 import Line

        given["env"] = Line()
    if section == "Fabric":  # whose block goes on where Lightning's ends
        given["lightning"] = importlib.import_module("lightning")
    return given


def check(section: str) -> None:
    _, expression, heading = SECTIONS[section]
    given = names(section)
    for block in sections()[section]:
        exec(compile(block, f"docs/trainers.md, {section}", "exec"), given)
        optimizer = eval(expression, given)
        found = fastopt.explain(optimizer)
        assert found.optimizer == heading
        assert {bucket.path for bucket in found.buckets} == {"cpu"}
        counts = [state["step"] for state in unwrapped(optimizer)[0].state.values()]
        assert (min(counts, default=0) > 0) == (section not in UNTRAINED)


def check_in_a_group(section: str) -> None:
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    check(section)
    os._exit(0)  # see leave() in test_deepspeed.py


def test_every_section_is_here() -> None:
    assert sections().keys() == SECTIONS.keys()
    assert all(sections().values())


@pytest.mark.parametrize("section", SECTIONS)
def test_blocks(section: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = SECTIONS[section][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)  # for what they write
    if section in IN_A_GROUP:
        run(1, check_in_a_group, section)
    else:
        check(section)
