"""DeepSpeed over two processes: plain, with masters, ZeRO 1 to 3, which step group by group."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from alike import BATCHES, assert_alike, assert_on_engine, loss_of, net, torchs
from processes import run

import fastopt

# Imported in the processes only, as it sets up much.
if importlib.util.find_spec("deepspeed") is None:
    pytest.skip("deepspeed is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore")

ZERO = " (in DeepSpeedZeroOptimizer)"
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("", {"stage": 0}),
    (" (in FP16_UnfusedOptimizer)", {"stage": 0, "dtype": "bf16"}),
    (ZERO, {"stage": 1}),
    (ZERO, {"stage": 2}),
    (ZERO, {"stage": 2, "dtype": "bf16"}),
    (ZERO, {"stage": 2, "dtype": "bf16", "offload": True}),
    (" (in DeepSpeedZeroOptimizer_Stage3)", {"stage": 3, "dtype": "bf16"}),
]


def groups_of(model: Any) -> list[Any]:
    weights = [p for p in model.parameters() if p.dim() > 1]
    biases = [p for p in model.parameters() if p.dim() == 1]
    return [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


def engine_of(
    cls: Any,
    stage: int,
    dtype: str = "fp32",
    clip: float = 0.1,
    groups: int = 2,
    untested: bool = True,
    offload: bool = False,
    **own: Any,
) -> Any:
    rank, world = str(dist.get_rank()), str(dist.get_world_size())
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "DS_ACCELERATOR": "cpu"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}  # gloo has been set up
    import deepspeed

    model = net()
    config: dict[str, Any] = {
        "train_batch_size": len(BATCHES[0][0]),
        "gradient_clipping": clip,
        "zero_optimization": {"stage": stage},
        "zero_force_ds_cpu_optimizer": False,  # of ZeRO-Offload, whose own is compiled at first use
        "zero_allow_untested_optimizer": untested,
        dtype: {"enabled": True},
    }
    config.pop("fp32", None)
    if offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    params = groups_of(model) if groups == 2 else model.parameters()
    optimizer = cls(params, lr=0.05, **own)
    return deepspeed.initialize(
        model=model, optimizer=optimizer, config=config, dist_init_required=False
    )[0]


def train(engine: Any, batches: Any = BATCHES) -> list[torch.Tensor]:
    """The whole parameters, in float32."""
    import deepspeed

    dtype = torch.bfloat16 if engine.bfloat16_enabled() else torch.float32
    for x, label in batches:
        share = x.chunk(dist.get_world_size())[dist.get_rank()].to(dtype)
        engine.backward(loss_of(engine(share), label))
        engine.step()
    with deepspeed.zero.GatheredParameters([*engine.module.parameters()]):
        return [p.detach().float().clone() for p in engine.module.parameters()]


def leave() -> None:
    """Past Python's teardown, where threads of DeepSpeed's groups at times call std::terminate."""
    dist.barrier()
    os._exit(0)


def watch(optimizer: Any) -> list[Any]:
    """What a step finds before it: ZeRO-3 shows the optimizer its parameters then only."""
    seen: list[Any] = []
    optimizer.register_step_pre_hook(lambda one, *_: seen.append(fastopt.explain(one)))
    return seen


def check_training(cls: Any) -> None:
    for wrapper, choice in CHOICES:
        theirs = train(engine_of(torchs(cls), **choice))
        engine = engine_of(cls, **choice)
        seen = watch(engine.basic_optimizer)
        ours = train(engine)
        assert {bucket.path for found in seen for bucket in found.buckets} == {"cpu"}
        assert len(seen) == len(BATCHES) * (2 if choice["stage"] else 1)
        if choice["stage"] < 3:
            assert_on_engine(engine.optimizer, cls.__name__ + wrapper)
        else:
            assert fastopt.explain(engine.optimizer).optimizer == cls.__name__ + wrapper
        half = "dtype" in choice
        start = [p.bfloat16().float() if half else p for p in net().parameters()]
        assert_alike(ours, theirs, start, 1e-2 if half else 1e-5)
    leave()


@pytest.mark.parametrize("cls", [fastopt.SGD, fastopt.AdamW])
def test_training(cls: Any) -> None:
    """As with torch's class, with DeepSpeed's clipping, one group of two with weight decay."""
    run(2, check_training, cls)


def check_adagrad() -> None:
    """ZeRO makes its own from torch.optim's name and the defaults there are, ours where they were
    set.
    """
    with pytest.raises(TypeError, match="unexpected keyword argument 'l1'"):
        engine_of(fastopt.Adagrad, 1, groups=1, l1=0.1)
    made = engine_of(fastopt.Adagrad, 1, groups=1).optimizer
    assert "is not fastopt's" in str(fastopt.explain(made))
    theirs = train(engine_of(torch.optim.Adagrad, 1, groups=1))
    with fastopt.patch():
        engine = engine_of(torch.optim.Adagrad, 1, groups=1)
    ours = train(engine)
    assert_on_engine(engine.optimizer, "Adagrad (in DeepSpeedZeroOptimizer)")
    assert_alike(ours, theirs, net().parameters())


def check_own_clipping() -> None:
    """With one group, and told of the processes that share it, ours is DeepSpeed's."""
    for stage in (1, 2):
        theirs = train(engine_of(torch.optim.SGD, stage, groups=1))
        own = {"max_grad_norm": 0.1, "norm_group": dist.group.WORLD}
        engine = engine_of(fastopt.SGD, stage, groups=1, clip=0.0, **own)
        ours = train(engine)
        assert engine.basic_optimizer.grad_norm > 0.1
        assert_alike(ours, theirs, net().parameters())


def check_refused() -> None:
    """Without the key that allows it."""
    with pytest.raises(AssertionError, match="untested ZeRO Optimizer"):
        engine_of(fastopt.AdamW, 1, untested=False)


def check_checkpoints(folder: str) -> None:
    """Saved and loaded by DeepSpeed, shard by shard, it goes on to the bit."""
    for stage in (1, 2):
        engine = engine_of(fastopt.AdamW, stage, state_bits=16)
        train(engine, BATCHES[:4])
        engine.save_checkpoint(folder, tag=f"stage{stage}")
        whole = train(engine, BATCHES[4:])
        engine = engine_of(fastopt.AdamW, stage, state_bits=16)
        engine.load_checkpoint(folder, tag=f"stage{stage}")
        assert all(map(torch.equal, train(engine, BATCHES[4:]), whole))


def check_the_rest(folder: str) -> None:
    engine_of(torch.optim.AdamW, 0)  # sets up DeepSpeed's processes
    check_refused()
    check_adagrad()
    check_own_clipping()
    check_checkpoints(folder)
    leave()


def test_what_zero_does_to_an_optimizer(tmp_path: Path) -> None:
    """In one go, as DeepSpeed takes long to set up."""
    run(2, check_the_rest, str(tmp_path))
