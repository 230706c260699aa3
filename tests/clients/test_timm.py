"""timm's factory of optimizers: fastopt's by registered names, timm's own names under patch()."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from alike import assert_alike, assert_on_engine, loss_of, torchs

import fastopt

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    try:
        from timm.models.vision_transformer import VisionTransformer
        from timm.optim import OptimInfo, create_optimizer_v2
        from timm.optim._optim_factory import default_registry
    except (ImportError, RuntimeError) as error:  # a torchvision that torch does not fit
        pytest.skip(f"timm does not import: {error}", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")

# No "_" in a name: timm takes the last part for the name, and "lookahead_" for its wrapper.
INFOS = [
    OptimInfo("fastoptsgd", fastopt.SGD, has_eps=False, has_momentum=True),
    OptimInfo("fastoptadamw", fastopt.AdamW, has_betas=True),
    OptimInfo("fastoptnadam", fastopt.NAdam, has_betas=True),
]
THEIRS = {"fastoptsgd": "momentum", "fastoptadamw": "adamw", "fastoptnadam": "nadam"}
for info in INFOS:
    default_registry.register(info)

CHOICES = {
    "groups": {"weight_decay": 0.05},
    "layers": {"weight_decay": 0.05, "layer_decay": 0.75},
    "foreach": {"foreach": True},
}


def vit() -> Any:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=8, patch_size=4, embed_dim=16, depth=2, num_heads=2, num_classes=3, qkv_bias=False
    )


def train(name: str, **options: Any) -> tuple[Any, Any]:
    model = vit()
    optimizer = create_optimizer_v2(model, name, lr=0.01, **options)
    for k in range(6):
        optimizer.zero_grad()
        image = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(k))
        loss_of(model(image), k % 3).backward()
        optimizer.step()
    return model, optimizer


def assert_trained_alike(*models: Any) -> None:
    assert_alike(*(model.parameters() for model in [*models, vit()]), tolerance=1e-4)


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_registered(info: Any, choice: str) -> None:
    theirs, reference = train(THEIRS[info.name], **CHOICES[choice])
    ours, optimizer = train(info.name, **CHOICES[choice])
    assert type(reference) is torchs(info.opt_class)
    assert_on_engine(optimizer, info.opt_class.__name__)
    assert len(optimizer.param_groups) == len(reference.param_groups)
    assert_trained_alike(ours, theirs)


def test_own_arguments() -> None:
    """They pass through the factory."""
    _, optimizer = train("fastoptadamw", max_grad_norm=0.1, ema_decay=0.9)
    assert optimizer.grad_norm > 0
    with optimizer.swap_ema():
        pass


def test_lookahead() -> None:
    theirs, _ = train("lookahead_adamw")
    ours, optimizer = train("lookahead_fastoptadamw")
    assert_on_engine(optimizer, "AdamW (in Lookahead)")
    assert_trained_alike(ours, theirs)


@pytest.mark.parametrize(
    ("name", "cls"), [("sgd", fastopt.SGD), ("adamw", fastopt.AdamW), ("nadam", fastopt.NAdam)]
)
def test_patch(name: str, cls: Any) -> None:
    """Its registry holds torch's classes since it was imported."""
    theirs, _ = train(name)
    with fastopt.patch():
        ours, optimizer = train(name)
    assert_on_engine(optimizer, cls.__name__)
    assert_trained_alike(ours, theirs)
