"""Adafactor: against float64 and torch's class over its options, shapes, types, threads and
instruction sets; layouts, shared memory, refusals, passes, checkpoints; torch's operations.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support import (
    assert_same_bits,
    assert_same_state,
    params_of,
    run,
    storage_name,
    values,
)
from torch import Tensor
from whole import SHAPES, make, pair, refuses

import fastopt
from fastopt import _core, rules

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr": {"lr": 0.3},
    "lr tensor": {"lr": torch.tensor(0.05)},
    "weight_decay": {"weight_decay": 0.3, "lr": 0.1},
    "maximize": {"maximize": True},
    "beta2_decay": {"beta2_decay": -0.3},
    "eps": {"eps": (0.2, 0.5)},
    "eps1": {"eps": (1e-8, 1e-3)},
    "d": {"d": 3.0},
    "everything": {"lr": 0.1, "weight_decay": 0.1, "maximize": True, "d": 2.0, "eps": (None, 0.1)},
}
# A change of a parameter, of its largest one: in float32 the sums in torch are what is less exact.
CLOSE = {torch.float32: 2e-5, torch.float64: 1e-11, torch.bfloat16: 0.03, torch.float16: 0.05}


def assert_close(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """Names, types and shapes as torch has them, values nearly."""
    for p, q in zip(params_of(ours), params_of(theirs), strict=True):
        close = {"rtol": CLOSE[p.dtype], "atol": CLOSE[p.dtype], "equal_nan": True}
        torch.testing.assert_close(p, q, **close)  # type: ignore[arg-type]
        state, expected = ours.state.get(p, {}), theirs.state.get(q, {})
        assert [*state] == [*expected]
        for name, t in state.items():
            torch.testing.assert_close(t, expected[name], **close)  # type: ignore[arg-type]
            assert (t.shape, t.dtype) == (expected[name].shape, expected[name].dtype)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def isas() -> Iterator[Callable[[str], None]]:
    before = _core.isa()
    yield _core.select_isa
    _core.select_isa(before)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_steps(options: dict[str, Any], foreach: bool) -> None:
    ours, theirs = pair("Adafactor", **options, foreach=foreach)
    for k in range(5):
        run(ours, 1, seed=k)
        run(theirs, 1, seed=k)
        assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_dtypes(dtype: torch.dtype) -> None:
    ours, theirs = pair("Adafactor", dtype, weight_decay=0.1)
    run(ours, 3)
    run(theirs, 3)
    assert_close(ours, theirs)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_float64(options: dict[str, Any], dtype: torch.dtype) -> None:
    """One step from torch's own states: within 2 roundings of a parameter and 16 of its change."""
    ours = make(fastopt.Adafactor, dtype, **options)
    run(ours, 2)
    before = [p.detach().double().numpy().copy() for p in params_of(ours)]
    states = [copy.deepcopy(ours.state[p]) for p in params_of(ours)]
    run(ours, 1, seed=9)
    group = {k: v for k, v in ours.param_groups[0].items() if k not in ("params", "foreach")}
    group["lr"] = float(group["lr"])
    eps = 2.0**-23 if dtype != torch.float64 else 2.0**-52
    stored = torch.finfo(dtype).eps
    for p, old, state in zip(params_of(ours), before, states, strict=True):
        assert p.grad is not None
        kept = {n: t.double().numpy() for n, t in state.items() if n != "step"}
        g = p.grad.double().numpy()
        expected, found = rules.adafactor(old, g, kept, step=3, dtype=storage_name(dtype), **group)
        change = np.abs(expected - old).max()
        # 16 bits of a variance are rounded before it is used.
        slack = 16 * max(eps, stored if p.dim() < 2 else eps)
        error = np.abs(p.detach().double().numpy() - expected)
        assert (error <= stored * np.abs(expected) + eps * np.abs(old) + slack * change).all()
        for name, t in found.items():
            mine = ours.state[p][name].double().numpy()
            assert (np.abs(mine - t) <= 2 * max(stored, eps) * np.abs(t) + 2.0**-24).all(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_threads_and_instruction_sets(
    dtype: torch.dtype, threads: Callable[[int], None], isas: Callable[[str], None]
) -> None:
    """The same bits for every number of threads; on every instruction set."""
    made = []
    for isa in _core.supported_isas():
        for count in (1, 2, 3):
            isas(isa)
            threads(count)
            optimizer = make(fastopt.Adafactor, dtype, weight_decay=0.1)
            large = torch.nn.Parameter(values((520, 400), dtype, 77))  # shared by threads
            deep = torch.nn.Parameter(values((60, 300, 3, 3), dtype, 78))
            optimizer.add_param_group({"params": [large, deep], "lr": 0.3})
            run(optimizer, 2)
            made.append(optimizer)
    for other in made[1:]:
        for p, q in zip(params_of(made[0]), params_of(other), strict=True):
            assert_same_bits(p, q, tuple(p.shape))
            for name, t in made[0].state[p].items():
                assert_same_bits(t, other.state[q][name], (name, tuple(p.shape)))


@pytest.mark.parametrize("how", ["transposed", "strided", "channels_last", "expanded gradient"])
def test_layouts(how: str) -> None:
    """As their contiguous copies."""

    def laid(x: Tensor) -> Tensor:
        if how == "transposed":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        if how == "channels_last":
            return x.contiguous(memory_format=torch.channels_last)
        return torch.zeros(2 * x.size(0), *x.shape[1:])[::2].copy_(x)

    made = []
    for lay in (torch.Tensor.contiguous, laid):
        keep = torch.Tensor.contiguous if how == "expanded gradient" else lay
        shape = (6, 5, 3, 3) if how == "channels_last" else (6, 20)
        params = [torch.nn.Parameter(keep(values(shape, torch.float32, i))) for i in range(3)]
        params.append(torch.nn.Parameter(torch.ones(20)[::2] if lay is laid else torch.ones(10)))
        optimizer = fastopt.Adafactor(params, lr=0.1)
        for k in range(3):
            for i, p in enumerate(params[:3]):
                g = values(shape, torch.float32, 10 * k + i)
                if how == "expanded gradient":
                    p.grad = g[:1].expand(shape) if lay is laid else g[:1].expand(shape).clone()
                else:
                    p.grad = lay(g)
            params[3].grad = torch.arange(1.0, 11)
            optimizer.step()
        made.append(optimizer)
    for p, q in zip(*map(params_of, made), strict=True):
        assert_same_bits(p.detach().contiguous(), q.detach().contiguous())
        for name, t in made[0].state[p].items():
            assert_same_bits(t, made[1].state[q][name].contiguous(), name)


@pytest.mark.parametrize("backend", ["auto", "triton"])
@pytest.mark.parametrize("strided", [False, True])
def test_shared_memory(strided: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters that overlap are updated one after the other, as torch's loop does it."""
    monkeypatch.setenv("FASTOPT_BACKEND", backend)
    made = []
    for cls in (fastopt.Adafactor, torch.optim.Adafactor):
        memory = values((8, 6), torch.float32, 3)
        views = [memory[:6], memory[2:], memory.view(-1)[3:30]]
        params = [v[:, 1:5] if strided and v.dim() > 1 else v for v in views]
        optimizer = cls(params, lr=0.1)
        run(optimizer, 3)
        made.append(memory)
    torch.testing.assert_close(*made, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("compiled_first", [False, True])
def test_shared_memory_over_both_paths(compiled_first: bool) -> None:
    """A compiled parameter and one whose gradient has another type: in their order, too."""
    made = []
    for kind in (torch.float64, torch.float32):  # both types, then one
        memory = values((8, 6), torch.float32, 3)
        params = [torch.nn.Parameter(memory[:6]), torch.nn.Parameter(memory[2:])]
        optimizer = fastopt.Adafactor(params, lr=0.5)
        mixed = params[compiled_first]
        mixed.grad_dtype = kind  # type: ignore[attr-defined]
        for k in range(3):
            for i, p in enumerate(params):
                g = values((6, 6), torch.float32, 10 * k + i)
                p.grad = g.to(kind) if p is mixed else g
            optimizer.step()
        made.append(memory)
        paths = {bucket.path for bucket in fastopt.explain(optimizer).buckets}
        assert paths == ({"cpu", "batched"} if kind == torch.float64 else {"cpu"})
    torch.testing.assert_close(*made, rtol=1e-5, atol=1e-5)


def test_a_refused_step_over_shared_memory() -> None:
    """All are checked before the first of them is updated."""
    memory = values((8, 6), torch.float32, 3)
    params = [torch.nn.Parameter(memory[:6, 1:5]), torch.nn.Parameter(memory[2:, 1:5])]
    optimizer = fastopt.Adafactor(params)
    run(optimizer, 1)
    optimizer.state[params[1]]["row_var"] = torch.ones(3)
    refuses(optimizer, "No parameter was changed")


def test_a_shared_step_count() -> None:
    ours, theirs = pair("Adafactor")
    for optimizer in (ours, theirs):
        run(optimizer, 1)
        first, second, *_ = params_of(optimizer)[4:]
        optimizer.state[second]["step"] = optimizer.state[first]["step"]
        run(optimizer, 2)
    assert_close(ours, theirs)


def test_nonfinite_gradients() -> None:
    """NaN where torch has it."""
    ours, theirs = pair("Adafactor")
    for bad in (torch.inf, torch.nan):
        for optimizer in (ours, theirs):
            run(optimizer, 1)
            for p in params_of(optimizer):
                if p.numel() > 4:
                    assert p.grad is not None
                    p.grad.view(-1)[3] = bad
            optimizer.step()
        for p, q in zip(params_of(ours), params_of(theirs), strict=True):
            assert torch.equal(p.isnan(), q.isnan()), tuple(p.shape)
    skipping = make(fastopt.Adafactor, skip_nonfinite=True)
    params_of(skipping)[1].grad = torch.full((1,), torch.nan)
    before = copy.deepcopy(skipping)
    skipping.step()
    assert_same_state(skipping, before)
    assert skipping.skipped_steps == 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("steps", [0, 2])
def test_a_refused_step_changes_nothing(steps: int) -> None:
    optimizer = make(fastopt.Adafactor)
    run(optimizer, steps)
    params = params_of(optimizer)
    for p in params:
        p.grad = torch.ones_like(p)
    last = params[15]  # a matrix
    for name, wrong in (
        ("row_var", torch.ones(3)),
        ("col_var", torch.ones_like(last)),
        ("row_var", torch.ones(2, 3, 20, 1).double()),
        ("step", torch.ones(2)),
        ("step", 3),
    ):
        kept = dict(optimizer.state.get(last, {}))
        right = {"step": torch.ones(()), "row_var": torch.ones(2, 3, 20, 1)}
        right["col_var"] = torch.ones(2, 3, 1, 33)
        optimizer.state[last] = {**right, name: wrong}
        refuses(optimizer, "No parameter was changed")
        optimizer.state[last] = kept
    last.grad = last.detach()
    refuses(optimizer, "shares memory")
    last.grad = torch.ones_like(last).to_sparse()
    refuses(optimizer, "^Adafactor does not support sparse gradients$")
    last.grad = torch.ones_like(last)
    vast = torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))
    vast.grad = torch.ones_like(vast)
    optimizer.add_param_group({"params": [vast]})
    refuses(optimizer, "^Adafactor does not support complex parameters$")


def test_param_groups() -> None:
    made = []
    for cls in (fastopt.Adafactor, torch.optim.Adafactor):
        p = [torch.nn.Parameter(values((6, 9), torch.float32, i)) for i in range(4)]
        optimizer = cls([{"params": p[:1], "lr": 0.1}, {"params": p[1:3], "d": 2.0}])
        run(optimizer, 2)
        optimizer.add_param_group({"params": p[3:], "lr": 0.5, "maximize": True})
        optimizer.param_groups[0]["lr"] = 0.3
        run(optimizer, 2)
        made.append(optimizer)
    assert_close(*made)


def test_mixed_types_have_their_own_eps() -> None:
    """Torch takes the machine epsilon of a group's first parameter for all of them."""
    made = []
    for first in (torch.float32, torch.float64):
        params = [torch.nn.Parameter(values((5, 20), t, 1)) for t in (first, torch.float32)]
        optimizer = fastopt.Adafactor(params)
        for p in params:
            p.grad = torch.full_like(p, 1e-9)
        optimizer.step()
        made.append(params[1])
    assert_same_bits(*made)


def test_empty() -> None:
    """Their steps are counted; torch divides by zero."""
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((0,), (0, 3), (3, 0), (2, 0, 4))]
    optimizer = fastopt.Adafactor([*params, torch.nn.Parameter(torch.ones(3))])
    run(optimizer, 2)
    assert all(optimizer.state[p]["step"] == 2 for p in params)


def test_versions() -> None:
    """Autograd is told of what the core writes."""
    optimizer = make(fastopt.Adafactor)
    run(optimizer, 1)
    p = params_of(optimizer)[4]
    written = [p, *optimizer.state[p].values()]
    before = [t._version for t in written]
    run(optimizer, 1)
    assert all(t._version > v for t, v in zip(written, before, strict=True))


def test_passes() -> None:
    """As torch's own tools one after another, with torch's class."""
    passes = {"max_grad_norm": 0.5, "max_grad_value": 0.05, "l1": 0.01, "ema_decay": 0.5}
    ours = make(fastopt.Adafactor, clear_grads=True, track_stats=True, **passes)
    theirs = make(torch.optim.Adafactor)
    averages: list[Tensor] = []
    for k in range(3):
        run(ours, 1, seed=k)
        for i, p in enumerate(params_of(theirs)):
            p.grad = values(p.shape, p.dtype, 1000 * k + i)
        torch.nn.utils.clip_grad_norm_(params_of(theirs), 0.5)
        for p in params_of(theirs):
            assert p.grad is not None
            p.grad.clamp_(-0.05, 0.05).add_(p.detach().sign(), alpha=0.01)
        theirs.step()
        weights = [p.detach().clone() for p in params_of(theirs)]
        averages = [a.lerp(w, 0.5) for a, w in zip(averages or weights, weights, strict=True)]
    for p, q, average in zip(params_of(ours), params_of(theirs), averages, strict=True):
        close = {"rtol": 1e-4, "atol": 1e-4, "equal_nan": True}
        torch.testing.assert_close(p, q, **close)  # type: ignore[arg-type]
        torch.testing.assert_close(ours.state[p]["ema"], average, **close)  # type: ignore[arg-type]
        assert p.grad is not None
        assert not p.grad.any()
    assert len(ours.stats()) == len(SHAPES["Adafactor"])  # type: ignore[attr-defined]


@pytest.mark.parametrize("strided", [False, True])
def test_grad_scaler(strided: bool) -> None:
    made = []
    for scale in (4.0, 1.0):
        p = torch.nn.Parameter(values((20, 6), torch.float32, 1))
        q = torch.nn.Parameter(p.detach().clone().t() if strided else p.detach().clone())
        optimizer = fastopt.Adafactor([p, q], clear_grads=scale != 1)
        p.grad = scale * values((20, 6), torch.float32, 2)
        q.grad = scale * values(tuple(q.shape), torch.float32, 3)
        if scale == 1:
            optimizer.step()
        else:
            scaler = torch.amp.GradScaler("cpu", init_scale=scale)
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
        made.append(optimizer)
    for p, q in zip(params_of(made[0]), params_of(made[1]), strict=True):
        assert_same_bits(p, q)


def test_explain_and_memory() -> None:
    optimizer = make(fastopt.Adafactor)
    assert f"cpu: {len(SHAPES['Adafactor'])} tensors" in str(fastopt.explain(optimizer))
    weighed = fastopt.memory([torch.empty(64, 32, requires_grad=True)], fastopt.Adafactor)
    assert (weighed.bytes["row_var"], weighed.bytes["col_var"]) == (4 * 64, 4 * 32)


# ---- torch's operations, as GPUs have them ----


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_batched(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    ours, theirs = pair("Adafactor", **options)
    ours.add_param_group({"params": [torch.nn.Parameter(values((4, 6), torch.float32, 1))]})
    theirs.add_param_group({"params": [torch.nn.Parameter(values((4, 6), torch.float32, 1))]})
    assert "batched by shape" in str(fastopt.explain(ours))
    for k in range(4):
        run(ours, 1, seed=k)
        run(theirs, 1, seed=k)
        assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_batched_dtypes(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, batched = make(fastopt.Adafactor, dtype), make(fastopt.Adafactor, dtype)
    run(compiled, 3)
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    run(batched, 3)
    assert_close(batched, compiled)


def test_gradients_of_another_type() -> None:
    made = []
    for kind in (torch.bfloat16, torch.float32):
        params = [torch.nn.Parameter(values((4, 6), torch.float32, i)) for i in range(2)]
        params[0].grad_dtype = kind  # type: ignore[attr-defined]
        optimizer = fastopt.Adafactor(params)
        for k in range(3):
            g = values((4, 6), torch.float32, 5 + k).bfloat16()
            params[0].grad, params[1].grad = g.to(kind), g.float()
            optimizer.step()
        made.append(params)
    for p, q in zip(*made, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=1e-3)
