"""Steps over streams in compact formats against the reference: decoded, stepped in float32, coded
again by the same noise; every rule, every pass, every instruction set, any number of threads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support import (
    NUMBERS,
    ON_TRITON,
    Optimizer,
    assert_same_bits,
    optimizer_named,
    to_numpy,
    values,
)
from torch import Tensor

from fastopt import _core
from fastopt.formats import FORMATS, key, noise, words
from fastopt.precision import CODES
from fastopt.rules import passes

pytestmark = pytest.mark.parity

SEED = 11
PLANES = {np.uint16: torch.int16, np.float32: torch.float32}


class Kept(NamedTuple):
    """How a parameter is kept: its format, its gradient's dtype, bits of its states."""

    weight: str
    grad: torch.dtype
    bits: int
    noisy: bool = False  # without a correction: rounded by noise

    def __str__(self) -> str:
        noisy = "-noisy" if self.noisy else ""
        return f"{self.weight}{noisy}-{str(self.grad).removeprefix('torch.')}-{self.bits}"

    @property
    def dtype(self) -> torch.dtype:
        if self.weight == "float32":
            return torch.float32
        halves = self.weight in ("float16", "rest16", "rest8")
        return torch.float16 if halves else torch.bfloat16


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KEPT = [
    Kept("float32", F32, 8),
    Kept("float32", F32, 16),
    Kept("float32", BF16, 8),
    Kept("split16", BF16, 32),
    Kept("split16", BF16, 8),
    Kept("split8", BF16, 8),
    Kept("split8", F32, 16),
    Kept("bfloat16", BF16, 8, noisy=True),
    Kept("bfloat16", BF16, 16, noisy=True),
    Kept("float16", F16, 8),
    Kept("float16", F16, 16, noisy=True),
    Kept("float16", F16, 8, noisy=True),
    Kept("rest16", F16, 32),
    Kept("rest8", F16, 8),
]
# Triton's interpreter takes some 0.1 s a program, which has 256 elements, or 64 of a tail.
SIZES = [65, 330] if ON_TRITON else [1, 63, 64, 65, 130, 1000]
STEPS = 2 if ON_TRITON else 3


def thinned(of: Any, kept: Kept, one_in: int) -> None:
    """Of so slow combinations not every pair, but every case, and every way to be kept."""
    if ON_TRITON and (sum(map(ord, str(of))) + KEPT.index(kept)) % one_in:
        pytest.skip(f"the interpreter takes one pair in {one_in}")


def state_format(kind: str, bits: int) -> str:
    if kind == "exact":
        return "float32"
    if bits == 8:
        return "signed8" if kind == "signed" else "positive8"
    return {16: "bfloat16", 32: "float32"}[bits]


class Model:
    """One parameter by the reference: planes in NumPy, stepped beside the engine's tensors."""

    def __init__(self, optimizer: Optimizer, kept: Kept, p: Tensor, hyper: dict[str, Any]) -> None:
        self.optimizer, self.kept, self.hyper = optimizer, kept, hyper
        starts = optimizer.starts(**hyper)
        made = optimizer.ours([torch.ones(1)], **hyper)
        self.kinds = _core.kinds(made._rule, made.param_groups[0])  # type: ignore[attr-defined]
        self.forms = {n: state_format(kind, kept.bits) for n, kind in self.kinds.items()}
        # Beside the step count.
        self.numbers = {n: np.float32(s) for n, s in starts.items() if n in NUMBERS - {"step"}}
        self.planes: dict[str, tuple[np.ndarray, ...]] = {}
        self.count, self.index, self.size = 0, 0, p.numel()
        self.store("", kept.weight, to_numpy(p).ravel())
        for name in self.kinds:
            start = starts[name] or 0
            begun = self.read("") if start == "param" else np.full(self.size, start, np.float32)
            self.store(name, self.forms[name], begun)

    def store(self, name: str, form: str, x: np.ndarray, r: np.ndarray | None = None) -> None:
        self.planes[name] = FORMATS[form].encode(np.asarray(x, np.float32), r)

    def read(self, name: str) -> np.ndarray:
        form = self.forms[name] if name else self.kept.weight
        return FORMATS[form].decode(*self.planes[name])

    def tensors(self, p: Tensor) -> dict[str, Tensor]:
        """The states of the engine's parameter, whose own first plane is put into it."""

        def tensor(x: np.ndarray, dtype: torch.dtype) -> Tensor:
            raw = torch.from_numpy(x.view(np.int16) if x.dtype == np.uint16 else x.copy())
            return raw.clone().view(dtype)

        first, *rest = self.planes[""]
        p.data.copy_(tensor(first, self.kept.dtype).view(p.shape))
        state = {"step": torch.zeros(())}
        state.update({name: torch.tensor(number) for name, number in self.numbers.items()})
        if rest:
            state["master_low"] = torch.from_numpy(rest[0].copy()).view(p.shape)
        for name in self.kinds:
            codes, *scale = self.planes[name]
            dtype = {1: torch.uint8, 2: BF16, 4: F32}[codes.itemsize]
            state[name + CODES * bool(scale)] = tensor(codes, dtype).view(p.shape)
            if scale:
                state[f"{name}_scale"] = torch.from_numpy(scale[0].copy())
        return state

    def step(self, g: Tensor, factor: float = 1.0, **around: Any) -> dict[str, float]:
        """The statistics of the step."""
        self.count += 1
        before = self.read("")
        maximize = self.hyper.get("maximize", False)
        grad = to_numpy(g).ravel()
        given = passes.gradient(before, grad, factor=factor, maximize=maximize, **around)
        states = {name: self.read(name) for name in self.kinds} | self.numbers
        hyper = {**self.hyper, "maximize": False}
        if "maximize" not in self.hyper:
            del hyper["maximize"]
        p, new = self.optimizer.reference(before, given, states, step=self.count, **hyper)
        self.numbers = {name: new[name] for name in self.numbers}
        used = {"signed": 0, "positive": 0}  # words, by kind
        for name, kind in self.kinds.items():
            form, r = self.forms[name], None
            if self.kept.bits < 32 and kind in used:
                r = noise(self.word(used[kind]), kind, FORMATS[form].noise_bits)
                used[kind] += 1
            self.store(name, form, new[name], r)
        r = None
        if self.kept.noisy or self.kept.weight == "split8":
            r = noise(self.word(0), "weight", FORMATS[self.kept.weight].noise_bits)
        self.store("", self.kept.weight, p, r)
        after = self.read("").astype(float)
        return {
            "update_norm": float(np.linalg.norm(after - before)),
            "weight_norm": float(np.linalg.norm(after)),
        }

    def word(self, which: int) -> np.ndarray:
        return words(key(SEED, self.count, self.index, which), 0, self.size)

    def check(self, p: Tensor, state: dict[str, Tensor]) -> None:
        first, *rest = self.planes[""]
        same(p, first, "parameter")
        for plane in rest:
            same(state["master_low"], plane, "master_low")
        for name in self.kinds:
            codes, *scales = self.planes[name]
            same(state[name + CODES * bool(scales)], codes, name)
            for plane in scales:
                same(state[f"{name}_scale"], plane, f"{name}_scale")
        for name, number in self.numbers.items():
            assert state[name].item() == number
        assert state["step"].item() == self.count


def same(t: Tensor, plane: np.ndarray, what: str) -> None:
    raw = (
        t.detach()
        .contiguous()
        .view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[t.element_size()])
    )
    got = raw.numpy().view(plane.dtype).ravel()
    if t.is_floating_point():  # which NaN it is, is the instruction set's
        real = plane.view(np.float32) if plane.dtype == np.float32 else None
        nan = np.isnan(real) if real is not None else np.zeros(len(plane), bool)
        got, plane = got[~nan], plane[~nan]
    np.testing.assert_array_equal(got, plane, err_msg=what)


def compact(
    optimizer: Optimizer, kept: Kept, params: list[Tensor], **hyper: Any
) -> tuple[torch.optim.Optimizer, list[Model]]:
    made = optimizer.ours(params, **hyper)
    group = made.param_groups[0]
    masters = {"split16": 32, "rest16": 32, "split8": 24, "rest8": 24}
    group.update(
        state_bits=kept.bits,
        min_8bit_size=1,
        master_weight_bits=masters.get(kept.weight),
        stochastic_rounding=kept.noisy,
        rounding_seed=SEED,
    )
    models = [Model(optimizer, kept, p, hyper) for p in params]
    for index, (p, model) in enumerate(zip(params, models, strict=True)):
        model.index = index
        made.state[p] = model.tensors(p)
    return made, models


def parameter(shape: Any, kept: Kept, seed: int) -> Tensor:
    p = torch.nn.Parameter(values(shape, kept.dtype, seed, wide=True))
    p.grad_dtype = kept.grad
    return p


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_steps(any_case: Any, kept: Kept, isa: str) -> None:
    """Tensors of a block and around it."""
    thinned(any_case, kept, one_in=6)
    hyper = any_case.hyper
    params = [parameter((n,), kept, seed=n) for n in SIZES]
    made, models = compact(any_case.optimizer, kept, params, **hyper)
    for k in range(STEPS):
        for i, p in enumerate(params):
            p.grad = values(p.shape, kept.grad, seed=10 * k + i + 5, wide=True)
            models[i].step(p.grad)
        made.step()
        for p, model in zip(params, models, strict=True):
            model.check(p, made.state[p])


@pytest.mark.engine_only("its threads")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kept", [KEPT[0], KEPT[5], KEPT[8], KEPT[12]], ids=str)
def test_threads(optimizer: Optimizer, kept: Kept, threads: int) -> None:
    """Shares that end within a tensor, and between blocks."""
    torch.set_num_threads(threads)
    hyper = optimizer.variants["default"]
    params = [parameter(s, kept, seed=i) for i, s in enumerate([(40001,), (200, 128), (77,)])]
    made, models = compact(optimizer, kept, params, **hyper)
    for k in range(2):
        for i, p in enumerate(params):
            p.grad = values(p.shape, kept.grad, seed=10 * k + i + 5, wide=True)
            models[i].step(p.grad)
        made.step()
    for p, model in zip(params, models, strict=True):
        model.check(p, made.state[p])


@pytest.mark.parametrize("kept", KEPT, ids=str)
def test_passes(optimizer: Optimizer, kept: Kept, isa: str) -> None:
    """The penalty and the average of the weight as it is stored, correction and all."""
    thinned(optimizer, kept, one_in=3)
    hyper = optimizer.variants["default"]
    params = [parameter((n,), kept, seed=n) for n in (130, 330 if ON_TRITON else 20000)]
    made, models = compact(optimizer, kept, params, **hyper)
    own = {"max_grad_norm": 0.5, "max_grad_value": 0.01, "l1": 0.05, "ema_decay": 0.9}
    made.param_groups[0].update(own, track_stats=True, clear_grads=True)
    averages = [None, None]
    for k in range(STEPS):
        for i, p in enumerate(params):
            p.grad = values(p.shape, kept.grad, seed=10 * k + i + 5)
        norm = passes.total_norm([to_numpy(p.grad) for p in params])
        factor = passes.clip_factor(norm, 0.5)
        stats = []
        for i, (p, model) in enumerate(zip(params, models, strict=True)):
            stats.append(model.step(p.grad, factor, max_grad_value=0.01, l1=0.05))
            stored = model.read("")
            dtype = {F32: "float32", BF16: "bfloat16", F16: "float16"}[kept.dtype]
            average = averages[i]
            now = stored if average is None else passes.average(average, stored, 0.9)
            of, r = FORMATS[dtype], None
            if of.noise_bits:
                r = noise(model.word(1), "weight", of.noise_bits)
            averages[i] = of.decode(*of.encode(now, r))
        made.step()
        assert made.grad_norm == torch.tensor(norm, dtype=made.grad_norm.dtype)
        for i, (p, model) in enumerate(zip(params, models, strict=True)):
            model.check(p, made.state[p])
            assert_same_bits(to_numpy(made.state[p]["ema"]), averages[i])
            assert not p.grad.any()
            for name, expected in stats[i].items():
                assert made.stats()[f"0.{i}"][name] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kept", [KEPT[0], KEPT[2], KEPT[5]], ids=str)
def test_unscaling(optimizer: Optimizer, kept: Kept, isa: str) -> None:
    p = parameter((130,), kept, seed=0)
    made, (model,) = compact(optimizer, kept, [p])
    p.grad = values((130,), kept.grad, seed=1)
    quotient = p.grad / 3
    model.step(p.grad.clone(), grad_scale=3.0)
    made.grad_scale, made.found_inf = torch.tensor(3.0), torch.tensor(0.0)
    made.step()
    model.check(p, made.state[p])
    assert_same_bits(p.grad, quotient)


def test_skipped_steps_draw_no_noise(optimizer: Optimizer) -> None:
    """It goes by the steps done, of which a device may be the only one to know."""
    kept = KEPT[5]
    params = [parameter((n,), kept, seed=n) for n in (65, 70)]
    made, models = compact(optimizer, kept, params)
    for k, left_out in enumerate((True, False, True, False)):
        for i, p in enumerate(params):
            p.grad = values(p.shape, kept.grad, seed=10 * k + i, wide=True)
            if not left_out:
                models[i].step(p.grad)
        made.grad_scale, made.found_inf = None, torch.tensor(float(left_out))
        made.step()
    for p, model in zip(params, models, strict=True):
        model.check(p, made.state[p])


@pytest.mark.parametrize("kept", [KEPT[0], KEPT[4], KEPT[13]], ids=str)
def test_layouts(optimizer: Optimizer, kept: Kept) -> None:
    """Blocks and noise go by the index of an element, whatever its place in memory."""
    rows = 3 if ON_TRITON else 24
    p = parameter((rows, 130), kept, seed=0)
    made, (model,) = compact(optimizer, kept, [p])
    p.data = p.data.t().contiguous().t()
    state = made.state[p]
    first = next(iter(model.kinds), "master_low")
    if name := next((name for name in (first, first + CODES) if name in state), ""):
        wide = torch.zeros(rows, 260, dtype=state[name].dtype)
        wide[:, ::2] = state[name]
        state[name] = wide[:, ::2]
    for k in range(2):
        p.grad = values((130, rows), kept.grad, seed=k).t()
        model.step(p.grad.contiguous())
        made.step()
        model.check(p, made.state[p])


def test_nothing_wanders_without_gradients(isa: str) -> None:
    """Of codes that are decoded and coded again, by any noise, none moves."""
    kept = KEPT[5]
    p = parameter((330,), kept, seed=0)
    made, _ = compact(optimizer_named("sgd"), kept, [p], lr=0.1)
    before, low = p.detach().clone(), made.state[p]["master_low"].clone()
    for _ in range(5):
        p.grad = torch.zeros(330, dtype=kept.grad)
        made.step()
    assert_same_bits(p, before)
    assert torch.equal(made.state[p]["master_low"], low)


def test_a_spike_stays_in_its_block(isa: str) -> None:
    p = parameter((256,), KEPT[0], seed=0)
    made, (model,) = compact(optimizer_named("adam"), KEPT[0], [p])
    for k in range(4):
        p.grad = values((256,), F32, seed=k)
        if k == 1:
            p.grad[70] = float("inf")
        model.step(p.grad)
        made.step()
        model.check(p, made.state[p])
    assert p.isnan().nonzero().ravel().tolist() == [70]


def test_another_seed_rounds_otherwise() -> None:
    ends = []
    for seed in (SEED, SEED, 12):
        p = parameter((1024,), KEPT[0], seed=0)
        made, _ = compact(optimizer_named("adam"), KEPT[0], [p])
        made.param_groups[0]["rounding_seed"] = seed
        p.grad = values((1024,), F32, seed=1)
        made.step()
        ends.append(made.state[p]["exp_avg_codes"])
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_what_does_not_fit_is_refused() -> None:
    def refused(match: str, change: Any, kept: Kept = KEPT[5]) -> None:
        p = parameter((130,), kept, seed=0)
        made, _ = compact(optimizer_named("adam"), kept, [p])
        change(made.state[p])
        p.grad = values((130,), kept.grad, seed=1)
        with pytest.raises(RuntimeError, match=match):
            made.step()

    def put(name: str, t: Tensor | None) -> Any:
        return lambda state: state.update({name: t})

    def without(name: str) -> Any:
        return lambda state: state.pop(name)

    byte = torch.uint8
    refused(
        "'exp_avg_scale' has shape .4,. .* must be 3",
        put("exp_avg_scale", torch.ones(4, dtype=byte)),
    )
    refused("'exp_avg_scale' has .* float32", put("exp_avg_scale", torch.ones(3)))
    refused("'exp_avg' has a dtype other", without("exp_avg_scale"))
    refused("'exp_avg_codes' is float32", put("exp_avg_codes", torch.ones(130)))
    refused("'exp_avg_codes' has shape", put("exp_avg_codes", torch.ones(64, dtype=byte)))
    refused("'master_low' has shape", put("master_low", torch.ones(64, dtype=torch.int8)))
    refused("'master_low' has dtype uint8", put("master_low", torch.ones(130, dtype=byte)))
    wide = Kept("float32", torch.float64, 8)
    refused("its gradient has dtype float64; beside compact", lambda state: None, wide)


def test_planes_that_share_memory_are_refused() -> None:
    p = parameter((130,), KEPT[0], seed=0)
    made, _ = compact(optimizer_named("adam"), KEPT[0], [p])
    state = made.state[p]
    state["exp_avg_sq_scale"] = state["exp_avg_scale"]
    p.grad = values((130,), F32, seed=1)
    with pytest.raises(RuntimeError, match="'exp_avg_sq_scale' shares memory with"):
        made.step()


def test_parameters_that_share_memory(optimizer: Optimizer) -> None:
    """One after the other, each with its own noise."""
    kept = KEPT[8]
    base = values((400,), BF16, seed=0)
    params = [torch.nn.Parameter(base[i : i + 200]) for i in (0, 100)]
    made, models = compact(optimizer, kept, params)
    for i, p in enumerate(params):
        p.grad = values((200,), BF16, seed=i)
        if i == 1:
            first, second = models[0].read(""), to_numpy(p)
            models[1].store("", kept.weight, np.concatenate([first[100:], second[100:]]))
        models[i].step(p.grad)
    made.step()
    models[1].check(params[1], made.state[params[1]])
