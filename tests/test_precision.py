"""Compact formats as a user asks for them: arguments, the states that follow, changes of mind,
edits from outside, long runs, bytes. A step's bits: test_compact.py; saving: test_checkpoints.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import ON_TRITON, Optimizer, assert_same_bits, values
from torch import Tensor

import fastopt
from fastopt.arguments import FORMATS
from fastopt.precision import CODES, LOW, SCALE

pytestmark = pytest.mark.skipif(ON_TRITON, reason="the CPU's; tests/test_compact.py has both")

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def parameter(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    p = torch.nn.Parameter(values(shape, dtype, seed=seed))
    p.grad = values(shape, dtype, seed=seed + 100)
    return p


def step(optimizer: torch.optim.Optimizer, *params: Tensor, seed: int = 0) -> None:
    for i, p in enumerate(params):
        p.grad = values(p.shape, p.dtype, seed=seed + i)
    optimizer.step()


BAD = {
    "state_bits": [4, 0, "8"],
    "master_weight_bits": [16, 8],
    "min_8bit_size": [0, -1, 1.5],
    "stochastic_rounding": [2, None],
    "rounding_seed": [-1, 0.5, 2**64],
}


@pytest.mark.parametrize("name", BAD)
def test_bad_values(optimizer: Optimizer, name: str) -> None:
    for value in BAD[name]:
        with pytest.raises(ValueError, match=f"{name} is .*; allowed: "):
            optimizer.ours([parameter(4, dtype=BF16)], **{name: value})


@pytest.mark.parametrize(
    ("dtype", "asked", "match"),
    [
        (F32, {"master_weight_bits": 24}, "is float32, which master_weight_bits=24 has nothing"),
        (torch.float64, {"state_bits": 8}, "is float64, but state_bits are for float32, bfloat16"),
        (torch.complex64, {"stochastic_rounding": True}, "is complex64, but stochastic_rounding"),
    ],
)
def test_parameters_that_it_does_not_suit(
    optimizer: Optimizer, dtype: torch.dtype, asked: dict[str, Any], match: str
) -> None:
    p, fits = parameter(4, dtype=dtype), parameter(4, dtype=BF16)
    with pytest.raises(ValueError, match=rf"params'\]\[0\] {match}"):
        optimizer.ours([p], **asked)
    made = optimizer.ours([fits], **asked)
    with pytest.raises(ValueError, match=rf"param_groups\[1\]\['params'\]\[0\] {match}"):
        made.add_param_group({"params": [p]})
    assert len(made.param_groups) == 1
    made.add_param_group({"params": [p]} | {name: FORMATS[name].default for name in asked})
    with pytest.raises(ValueError, match="leave one of them out"):
        optimizer.ours([fits], master_weight_bits=24, stochastic_rounding=True)


def test_cast_behind_its_back() -> None:
    p = parameter(4, dtype=BF16)
    made = fastopt.AdamW([p], master_weight_bits=24)
    p.data = p.data.float()
    p.grad = torch.ones(4)
    with pytest.raises(RuntimeError, match="has nothing to add to"):
        made.step()
    assert not made.state[p]


def test_torchs_path_refuses() -> None:
    p = parameter(4, dtype=BF16)
    with pytest.raises(RuntimeError, match="state_bits=16 needs fastopt's own kernels"):
        fastopt.AdamW([p], state_bits=16, differentiable=True).step()


@pytest.mark.parametrize(
    ("shape", "coded"),
    [
        ((64, 64), (64, 1)),
        ((8, 8, 64), (8, 8)),
        ((5000,), (79,)),
        ((4095,), None),
        ((64, 65), None),
    ],
)
def test_who_gets_codes(shape: tuple[int, ...], coded: tuple[int, ...] | None) -> None:
    """Large tensors whose rows are whole blocks."""
    p = parameter(*shape)
    made = fastopt.AdamW([p], state_bits=8)
    made.step()
    state = made.state[p]
    if coded is None:
        assert state["exp_avg"].dtype == F32
        assert "exp_avg_scale" not in state
    else:
        assert "exp_avg" not in state
        assert state["exp_avg_codes"].dtype == torch.uint8
        assert state["exp_avg_codes"].shape == p.shape
        assert state["exp_avg_scale"].shape == coded


def test_states_of(optimizer: Optimizer) -> None:
    """Every state in its format; what begins as a number does so within the code's step."""
    p = parameter(64, 64, dtype=BF16)
    starts = optimizer.starts(**optimizer.strongest)
    for bits, dtype in ((8, torch.uint8), (16, BF16), (32, F32)):
        made = optimizer.ours([p], **optimizer.strongest, state_bits=bits, master_weight_bits=32)
        made.step()
        state = made.state[p]
        for name, kind in fastopt._core.kinds(made._rule, made.param_groups[0]).items():
            coded = bits == 8 and kind != "exact"
            kept = state[name + CODES * coded]
            assert kept.dtype == (F32 if kind == "exact" else dtype), name
            assert (name + SCALE in state) == coded, name
            assert (name in state) != coded, name
        assert state[LOW].dtype == torch.int16
        assert starts.keys() - {name.removesuffix(CODES) for name in state} == set()


def test_a_change_of_mind(optimizer: Optimizer) -> None:
    """States go over to what the group comes to ask for: coarser ones to nearest, finer ones as
    they are.
    """
    p = parameter(64, 64, dtype=BF16)
    made = optimizer.ours([p], **optimizer.strongest, state_bits=32, master_weight_bits=32)
    step(made, p)
    group = made.param_groups[0]
    kinds = fastopt._core.kinds(made._rule, group)
    group["lr"] = 0.0
    if "betas" in group:
        group["betas"] = (1 - 1e-9,) * len(group["betas"])
    if "momentum" in group:  # LARS's buffer holds learning rates
        group["momentum"] = 1e-30
    if "r" in group:  # of weights so far, that of a later step is nothing
        group["r"] = -100.0
    step(made, p)  # the last one whose learning rate is what an earlier one has left
    low = made.state[p][LOW].clone()
    for bits, masters, dtype in ((8, 24, torch.uint8), (None, None, BF16), (16, 32, BF16)):
        group.update(state_bits=bits, master_weight_bits=masters)
        p.grad = torch.zeros_like(p)
        made.step()
        for name, kind in kinds.items():
            exact, state = kind == "exact", made.state[p]
            coded = bits == 8 and not exact
            assert state[name + CODES * coded].dtype == (F32 if exact else dtype)
            assert (name + SCALE in state) == (name not in state) == coded
        if masters is None:
            assert LOW not in made.state[p]
        elif masters == 24:
            assert (made.state[p][LOW].int() - low.int() / 256).abs().max() <= 1


def test_groups_of_different_formats() -> None:
    params = [parameter(64, 64, dtype=BF16, seed=i) for i in range(4)]
    kinds: list[dict[str, Any]] = [
        {"state_bits": 8, "master_weight_bits": 24},
        {"state_bits": 16, "stochastic_rounding": True},
        {"state_bits": 32},
        {},
    ]
    groups = [{"params": [p], **kind} for p, kind in zip(params, kinds, strict=True)]
    together = fastopt.AdamW(groups, max_grad_norm=0.1)
    together.step()
    names = ["exp_avg_codes", "exp_avg", "exp_avg", "exp_avg"]
    dtypes = [together.state[p][name].dtype for p, name in zip(params, names, strict=True)]
    assert dtypes == [torch.uint8, BF16, F32, BF16]


def test_scaler() -> None:
    """GradScaler's factor is divided out before anything is coded; an overflow changes nothing."""
    for found in (0.0, 1.0):
        p, q = (parameter(64, 64, dtype=BF16) for _ in range(2))
        ours, alone = (fastopt.AdamW([x], state_bits=8, master_weight_bits=24) for x in (p, q))
        p.grad.mul_(4)
        before = p.detach().clone()
        ours.grad_scale, ours.found_inf = torch.tensor(4.0), torch.tensor(found)
        ours.step()
        alone.step()
        if found:
            assert_same_bits(p, before)
            assert not ours.state[p]
        else:
            assert_same_bits(p, q)
            assert torch.equal(ours.state[p]["exp_avg_codes"], alone.state[q]["exp_avg_codes"])


def test_skipped_steps_change_nothing() -> None:
    p = parameter(64, 64, dtype=BF16)
    made = fastopt.AdamW([p], state_bits=8, master_weight_bits=24, skip_nonfinite=True)
    made.step()
    before = [p.detach().clone(), *(t.clone() for t in made.state[p].values())]
    p.grad[3, 3] = float("nan")
    made.step()
    assert made.skipped_steps == 1
    for a, b in zip(before, [p.detach(), *made.state[p].values()], strict=True):
        assert torch.equal(a, b)


# ---- edits from outside ----
def corrected(**more: Any) -> tuple[Tensor, torch.optim.Optimizer]:
    p = parameter(64, 64, dtype=BF16)
    made = fastopt.AdamW([p], master_weight_bits=32, **more)
    step(made, p)
    step(made, p, seed=1)
    assert made.state[p][LOW].any()
    return p, made


def test_stale_corrections() -> None:
    """Of a parameter that somebody has written to, only its 16 bits count."""
    p, made = corrected()
    made.param_groups[0]["lr"] = 0.0
    module = torch.nn.Module()
    module.weight = p
    module.load_state_dict({"weight": torch.full((64, 64), 3.0)})
    step(made, p, seed=2)
    weight = fastopt.precision.weight(p, made.state[p])
    assert torch.equal(weight, torch.full((64, 64), 3.0))
    with torch.no_grad():
        p[0] = 5.0
    step(made, p, seed=3)
    assert torch.equal(fastopt.precision.weight(p, made.state[p])[0], torch.full((64,), 5.0))


def test_a_refused_step_keeps_what_is_stale() -> None:
    """It changes no tensor; the next one knows."""
    p, made = corrected()
    low, average = made.state[p][LOW].clone(), made.state[p]["exp_avg"]
    with torch.no_grad():
        p.fill_(3.0)
    made.state[p]["exp_avg"] = torch.zeros(3, dtype=BF16)
    with pytest.raises(RuntimeError, match="'exp_avg' has shape"):
        made.step()
    assert torch.equal(made.state[p][LOW], low)
    made.state[p]["exp_avg"] = average
    made.param_groups[0].update(skip_nonfinite=True, lr=0.0)
    p.grad.fill_(float("nan"))
    made.step()
    assert torch.equal(made.state[p][LOW], low)
    step(made, p)
    assert torch.equal(fastopt.precision.weight(p, made.state[p]), torch.full((64, 64), 3.0))


def test_swapping_averages_keeps_corrections() -> None:
    p, made = corrected(ema_decay=0.5)
    kept, low = p.detach().clone(), made.state[p][LOW].clone()
    with made.swap_ema():
        assert not torch.equal(p, kept)
    group = made.param_groups[0]
    group.update(lr=0.0, weight_decay=0.0)
    step(made, p)
    assert_same_bits(p, kept)
    assert torch.equal(made.state[p][LOW], low)
    with torch.no_grad():
        p.add_(1)
    with made.swap_ema():  # a stale one stays stale
        pass
    step(made, p)
    assert not made.state[p][LOW].any()


# ---- long runs ----
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("beta2", [0.95, 0.999, 0.9999])
@pytest.mark.parametrize("scale", [1e-1, 1e-3, 1e-8])
def test_second_moments_decay(bits: int, beta2: float, scale: float) -> None:
    """Gradients of half of each block drop tenfold: their v follows, which nearest rounding, that
    never decays, would leave 6 to 9 times too large at a beta2 of 0.999.
    """
    torch.manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(64, 64))
    made = fastopt.Adam([p], lr=0.0, betas=(0.9, beta2), state_bits=bits)
    exact = torch.zeros(64, 64, dtype=torch.float64)
    falls = torch.arange(64) % 2 == 0
    steps = 2000 if beta2 < 0.9999 else 6000
    for k in range(2 * steps):
        g = torch.randn(64, 64) * scale
        if k >= steps // 2:
            g[:, falls] /= 10
        exact = beta2 * exact + (1 - beta2) * g.double() ** 2
        p.grad = g
        made.step()
    state = made.portable_state_dict()["state"][0]["exp_avg_sq"].double()
    ratio = (state.sqrt() / exact.sqrt())[:, falls].median().item()
    assert 0.95 < ratio < 1.05


@pytest.mark.parametrize(
    "formats",
    [{"master_weight_bits": 24}, {"master_weight_bits": 32}, {"stochastic_rounding": True}],
    ids=str,
)
def test_tiny_updates_add_up(formats: dict[str, Any]) -> None:
    """1e5 updates, each a thousandth of the last place of bfloat16."""
    p = torch.nn.Parameter(torch.ones(64, dtype=BF16))
    made = fastopt.SGD([p], lr=2.0**-17, **formats)
    p.grad = torch.full((64,), -1.0, dtype=BF16)
    for _ in range(100_000):
        made.step()
    expected = 1 + 100_000 * 2.0**-17
    weight = fastopt.precision.weight(p, made.state[p]).double()
    # Of noise a random walk: in the last place, 2^-15 or 2^-7, by its root a step.
    assert weight.mean().item() == pytest.approx(expected, rel=0.02)


def test_spikes_do_not_grow_updates() -> None:
    """Beside a gradient a million times the others, and after a thousand steps of none."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.zeros(64, 64)) for _ in range(2)]
    made = [fastopt.Adam([params[0]], state_bits=8), fastopt.Adam([params[1]])]
    moves: list[list[float]] = []
    for k in range(300):
        g = torch.zeros(64, 64) if 50 <= k < 150 else torch.randn(64, 64) * 1e-3
        if k in (20, 200):
            g[:, 5] *= 1e6
        before = [p.detach().clone() for p in params]
        for p, optimizer in zip(params, made, strict=True):
            p.grad = g.clone()
            optimizer.step()
        moves.append(
            [(p.detach() - b).abs().max().item() for p, b in zip(params, before, strict=True)]
        )
    assert all(coded <= 1.5 * exact + 1e-9 for coded, exact in moves)


# ---- bytes ----
def test_memory() -> None:
    """What is told beforehand is what is there afterwards."""
    model = torch.nn.Sequential(torch.nn.Linear(256, 256, bias=False), torch.nn.LayerNorm(256))
    model.bfloat16()
    asked: dict[str, Any] = {"state_bits": 8, "master_weight_bits": 24, "ema_decay": 0.99}
    told = fastopt.memory(model, fastopt.AdamW, **asked)
    made = fastopt.AdamW(model.parameters(), **asked)
    assert fastopt.memory(made) == told == fastopt.explain(made).memory
    assert all(not made.state[p] for p in model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    made.step()
    held: dict[str, int] = {"weights": 0, "gradients": 0}
    for p in model.parameters():
        held["weights"] += p.nbytes
        held["gradients"] += p.grad.nbytes
        for name, t in made.state[p].items():
            kind = "numbers" if name == "step" else name.removesuffix(SCALE).removesuffix(CODES)
            held[kind] = held.get(kind, 0) + t.nbytes
    assert held == told.bytes
    assert str(told).startswith(f"{told.total / told.elements:.2f} bytes a parameter (weights 2.00")


@pytest.mark.parametrize(
    ("dtype", "asked", "states", "total"),
    [
        (F32, {}, 8.0, 16.0),
        (F32, {"state_bits": 16}, 4.0, 12.0),
        (F32, {"state_bits": 8}, 2.04, 10.04),
        (BF16, {"state_bits": 8, "master_weight_bits": 24}, 3.04, 7.04),
    ],
)
def test_bytes_a_parameter(
    dtype: torch.dtype, asked: dict[str, Any], states: float, total: float
) -> None:
    with torch.device("meta"):
        weight = torch.nn.Parameter(torch.empty(4096, 4096, dtype=dtype))
    told = fastopt.memory([weight], **asked)
    assert told.per_parameter(told.states) == pytest.approx(states, abs=0.01)
    assert told.per_parameter(told.total) == pytest.approx(total, abs=0.01)


def test_memory_of_others() -> None:
    with pytest.raises(TypeError, match=r"fastopt's optimizers; got a torch.optim.*SGD"):
        fastopt.memory(torch.optim.SGD([torch.ones(1)]))
