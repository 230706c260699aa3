"""Compact formats in checkpoints: a resumed run is the run, to the bit; torch's form both ways;
other libraries'.
"""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from support import ON_TRITON, Optimizer, values
from torch import Tensor

import fastopt
from fastopt.precision import LOW

pytestmark = pytest.mark.skipif(ON_TRITON, reason="what is saved is the same tensors")

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
KEPT: list[tuple[torch.dtype, dict[str, Any]]] = [
    (F32, {"state_bits": 8}),
    (F32, {"state_bits": 16, "ema_decay": 0.9}),
    (BF16, {"state_bits": 8, "master_weight_bits": 24, "rounding_seed": 5}),
    (BF16, {"state_bits": 32, "master_weight_bits": 32}),
    (BF16, {"stochastic_rounding": True}),
    (F16, {"state_bits": 8, "master_weight_bits": 32}),
]


def model(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)).to(dtype)


def train(of: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int) -> None:
    for k in range(steps):
        for i, p in enumerate(of.parameters()):
            p.grad = values(p.shape, p.dtype, seed=seed + 100 * k + i)
        optimizer.step()


def assert_equal(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("model_first", [True, False])
@pytest.mark.parametrize(("dtype", "kept"), KEPT, ids=str)
def test_resumed(
    optimizer: Optimizer, dtype: torch.dtype, kept: dict[str, Any], model_first: bool
) -> None:
    """Saved, loaded with weights_only where no format was given, and gone on with."""
    hyper = optimizer.strongest
    first = model(dtype)
    one = optimizer.ours(first.parameters(), **hyper, **kept)
    train(first, one, 3, seed=0)
    file = io.BytesIO()
    torch.save([first.state_dict(), one.state_dict()], file)
    train(first, one, 3, seed=50)

    file.seek(0)
    weights, states = torch.load(file, weights_only=True)
    second = model(dtype)
    other = optimizer.ours(second.parameters(), **hyper)
    loads = [lambda: second.load_state_dict(weights), lambda: other.load_state_dict(states)]
    for load in loads if model_first else reversed(loads):
        load()
    train(second, other, 3, seed=50)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
        assert_equal(one.state[p], other.state[q])


def test_copies(optimizer: Optimizer) -> None:
    """A copy goes on as what it was copied from."""
    first = model(BF16)
    one = optimizer.ours(first.parameters(), state_bits=8, master_weight_bits=24)
    train(first, one, 2, seed=0)
    second, other = copy.deepcopy((first, one))
    train(first, one, 2, seed=9)
    train(second, other, 2, seed=9)
    for p, q in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
        assert_equal(one.state[p], other.state[q])


def test_portable(optimizer: Optimizer) -> None:
    """Torch's class loads it and goes on; and back."""
    if optimizer.theirs is None:
        pytest.skip("torch has no such class")
    of = model(BF16)
    hyper = optimizer.variants["default"]
    ours = optimizer.ours(of.parameters(), **hyper, state_bits=8, master_weight_bits=24)
    train(of, ours, 2, seed=0)
    saved = ours.portable_state_dict()
    for state in saved["state"].values():
        assert all(t.dtype == F32 for t in state.values())
    theirs = optimizer.theirs(of.parameters(), **hyper)
    assert saved["param_groups"][0].keys() <= theirs.param_groups[0].keys()
    theirs.load_state_dict(copy.deepcopy(saved))
    train(of, theirs, 1, seed=5)

    back = optimizer.ours(of.parameters(), **hyper, state_bits=8, master_weight_bits=24)
    back.load_state_dict(saved)
    again = back.portable_state_dict()["state"]
    for key, state in saved["state"].items():
        for name, t in state.items():  # coded anew, to nearest
            near = t.abs().max().item() / 2048
            torch.testing.assert_close(again[key][name], t, rtol=1 / 32, atol=near)
    assert not any(back.state[p][LOW].any() for p in of.parameters())
    train(of, back, 1, seed=6)


def test_what_does_not_suit_is_refused_whole() -> None:
    """Before anything is loaded."""
    halves, floats = model(BF16), model(F32)
    saved = fastopt.AdamW(halves.parameters(), lr=0.5, master_weight_bits=24).state_dict()
    made = fastopt.AdamW(floats.parameters())
    with pytest.raises(ValueError, match="is float32, which master_weight_bits=24 has nothing"):
        made.load_state_dict(saved)
    assert made.param_groups[0]["lr"] == 1e-3
    assert "master_weight_bits" not in made.param_groups[0]


def test_negative_second_moments_are_refused() -> None:
    p = torch.nn.Parameter(torch.ones(64, 64))
    theirs = torch.optim.AdamW([p])
    p.grad = torch.ones_like(p)
    theirs.step()
    theirs.state[p]["exp_avg_sq"][3] = -1.0
    with pytest.raises(RuntimeError, match="'exp_avg_sq' has negative numbers"):
        fastopt.AdamW([p], state_bits=8).load_state_dict(theirs.state_dict())


# ---- other libraries' ----
def blockwise(x: Tensor, size: int, codes: Tensor) -> tuple[Tensor, Tensor]:
    """As bitsandbytes codes a tensor: the nearest of 256 numbers times its block's maximum."""
    flat = x.flatten()
    pad = torch.nn.functional.pad(flat, (0, -len(flat) % size)).view(-1, size)
    absmax = pad.abs().amax(1)
    near = (pad / absmax[:, None]).unsqueeze(-1).sub(codes).abs().argmin(-1)
    return near.to(torch.uint8).flatten()[: len(flat)].view(x.shape), absmax


def test_codes_by_their_old_names() -> None:
    """As they were before they had names of their own."""
    p = torch.nn.Parameter(values((64, 96), F32, seed=0))
    made = fastopt.AdamW([p], state_bits=8)
    p.grad = values((64, 96), F32, seed=1)
    made.step()
    saved = made.state_dict()
    state = saved["state"][0]
    old = {name.removesuffix("_codes"): t for name, t in state.items()}
    again = fastopt.AdamW([p], state_bits=8)
    again.load_state_dict({**saved, "state": {0: old}})
    assert again.state[p].keys() == state.keys()
    assert all(torch.equal(again.state[p][name], t) for name, t in state.items())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("bits", [None, 8])
def test_bitsandbytes_form(packed: bool, bits: int | None) -> None:
    p = torch.nn.Parameter(values((64, 96), F32, seed=0))
    signed, positive = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256)
    m, v = values((64, 96), F32, seed=1), values((64, 96), F32, seed=2) ** 2
    (state1, absmax1), (state2, absmax2) = blockwise(m, 256, signed), blockwise(v, 256, positive)
    codes = {"state1": state1, "state2": state2, "qmap1": signed, "qmap2": positive}
    codes |= {"absmax1": absmax1, "absmax2": absmax2}
    state = {"step": 7, **({"__bnb_optimizer_quant_state__": codes} if packed else codes)}
    groups = [{"params": [0], "lr": 0.5, "betas": (0.8, 0.9), "eps": 1e-8, "weight_decay": 0.0}]
    made = fastopt.AdamW([p], state_bits=bits)
    made.load_state_dict({"state": {0: state}, "param_groups": groups})
    loaded = made.portable_state_dict()["state"][0]
    assert loaded["step"].item() == 7
    near = absmax1.repeat_interleave(256).view(64, 96)
    torch.testing.assert_close(loaded["exp_avg"], m, rtol=1 / 16, atol=near.max().item() / 100)
    near = absmax2.repeat_interleave(256).view(64, 96)
    torch.testing.assert_close(loaded["exp_avg_sq"], v, rtol=1 / 16, atol=near.max().item() / 100)
    p.grad = torch.ones_like(p)
    made.step()
    assert made.param_groups[0]["lr"] == 0.5


def test_bitsandbytes_without_blocks() -> None:
    p = torch.nn.Parameter(torch.ones(64, 64))
    state = {"step": 1, "state1": torch.zeros(64, 64, dtype=torch.uint8), "qmap1": torch.ones(256)}
    saved = {"state": {0: state}, "param_groups": [{"params": [0]}]}
    with pytest.raises(ValueError, match="not scaled by blocks of 256 or 2048; save it with block"):
        fastopt.Lion([p]).load_state_dict(saved)


def test_torchao() -> None:
    """Of the library itself, where it is installed."""
    low_bit = pytest.importorskip("torchao.optim")
    p = torch.nn.Parameter(values((64, 64), F32, seed=0))
    theirs = low_bit.AdamW8bit([p])
    p.grad = values((64, 64), F32, seed=1)
    with torch.compiler.set_stance("force_eager"):
        theirs.step()
    made = fastopt.AdamW([p], state_bits=8)
    made.load_state_dict(theirs.state_dict())
    wanted = theirs.state[p]["exp_avg"].dequantize()
    loaded = made.portable_state_dict()["state"][0]["exp_avg"]
    torch.testing.assert_close(loaded, wanted, rtol=1 / 16, atol=wanted.abs().max().item() / 2000)


@pytest.mark.parametrize("name", ["AdamW", "Lion", "RMSprop"])
def test_bitsandbytes(name: str) -> None:
    """Of the library itself, where it is installed: a coded state and one that is too small."""
    library = pytest.importorskip("bitsandbytes")
    params = [torch.nn.Parameter(values(shape, F32, seed=0)) for shape in ((64, 128), (10,))]
    theirs = getattr(library.optim, f"{name}8bit")(params)
    for p in params:
        p.grad = values(p.shape, F32, seed=1)
    theirs.step()
    made = getattr(fastopt, name)(params, state_bits=8)
    made.load_state_dict(theirs.state_dict())
    ours = made.portable_state_dict()["state"]
    for key, p in enumerate(params):
        state = theirs.state[p]
        wanted = state["state1"]
        if wanted.dtype == torch.uint8:
            scales = state["absmax1"].repeat_interleave(256)
            wanted = (state["qmap1"][wanted.view(-1).long()] * scales).view(p.shape)
        near = wanted.abs().max().item() / 2000
        first = next(t for n, t in ours[key].items() if n != "step")
        torch.testing.assert_close(first, wanted, rtol=1 / 16, atol=near)
    made.step()
