"""Other libraries' optimizers on a CPU: who they are, what is installed, how each is made.

A library joins by one entry in LIBRARIES. Importing, or a first step that compiles, happens while a
contestant is built and checked, hence outside the timing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import MAKERS, Maker


@dataclass(frozen=True)
class Library:
    """Optimizers of one kind from one distribution."""

    distribution: str
    make: Maker
    classes: tuple[str, ...]  # of torch's, that it has an equivalent of
    coarse: float | None = None  # what it may be off by as a mean: see contestants.build

    @property
    def version(self) -> str | None:
        """What is installed; None without it."""
        try:
            return metadata.version(self.distribution)
        except metadata.PackageNotFoundError:
            return None


def _from(module: str, suffix: str = "", **fixed: Any) -> Maker:
    """`module`'s class of torch's name and `suffix`, called with torch's options and `fixed`."""

    def make(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        found = getattr(import_module(module), cls + suffix)
        optimizer: torch.optim.Optimizer = found(params, **fixed, **options)
        return optimizer

    return make


def _deepspeed(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    found = import_module("deepspeed.ops.adam").DeepSpeedCPUAdam
    optimizer: torch.optim.Optimizer = found(params, adamw_mode=cls == "AdamW", **options)
    return optimizer


ADAMS = ("Adam", "AdamW")
TORCHS = (*ADAMS, "SGD", "RMSprop")

# Measured after CHECK_STEPS: 8-bit states are off by 0.01 of the update, 4-bit ones by 0.14.
EIGHT_BIT, FOUR_BIT = 0.05, 0.25
# A compiled AdamW was seen 1.8 element-wise tolerances off, 2e-5 of its update, and DeepSpeed's
# 1.04: rounding, no fault.
ROUNDED = 1e-4

LIBRARIES: dict[str, Library] = {
    "fastopt": Library("fastopt", MAKERS["fastopt"], TORCHS),
    "torch.default": Library("torch", MAKERS["torch.default"], TORCHS),
    "torch.foreach": Library("torch", MAKERS["torch.foreach"], TORCHS),
    "torch.fused": Library("torch", MAKERS["torch.fused"], (*ADAMS, "SGD")),
    "torch.compiled": Library("torch", MAKERS["torch.compiled"], TORCHS, ROUNDED),
    "deepspeed.CPUAdam": Library("deepspeed", _deepspeed, ADAMS, ROUNDED),
    # Its defaults are not torch's.
    "optimi": Library("torch-optimi", _from("optimi", betas=(0.9, 0.999), eps=1e-8), ADAMS),
    "bitsandbytes.32bit": Library(
        "bitsandbytes", _from("bitsandbytes.optim", "32bit"), (*ADAMS, "RMSprop")
    ),
    "bitsandbytes.8bit": Library(
        "bitsandbytes", _from("bitsandbytes.optim", "8bit"), (*ADAMS, "RMSprop"), EIGHT_BIT
    ),
    "torchao.8bit": Library("torchao", _from("torchao.optim", "8bit"), ADAMS, EIGHT_BIT),
    "torchao.fp8": Library("torchao", _from("torchao.optim", "Fp8"), ADAMS, EIGHT_BIT),
    "torchao.4bit": Library("torchao", _from("torchao.optim", "4bit"), ADAMS, FOUR_BIT),
}

# What these libraries have besides, and why it does not run here.
GPU_ONLY = {
    "apex.FusedAdam": "CUDA only",
    "bitsandbytes.PagedAdamW": "CUDA only: pages between GPU and host",
    "torchao.CPUOffloadOptimizer": "needs a GPU to offload from",
    "optimi.triton": "GPU only",
}


def versions() -> dict[str, str | None]:
    """Every distribution of LIBRARIES with its version, None where it is absent."""
    found = {library.distribution: library.version for library in LIBRARIES.values()}
    del found["fastopt"]  # the header has it, also where it runs from its tree
    return found
