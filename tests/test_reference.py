"""The engine against the NumPy references, bit for bit: steps, threads, grad scaling, the rules."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from support import (
    ALL_DTYPES,
    NUMBERS,
    REAL_DTYPES,
    Case,
    Optimizer,
    Stepped,
    assert_same_bits,
    optimizer_named,
    parameter,
    to_numpy,
    values,
)

from fastopt import rules
from fastopt.rules.arithmetic import fma_float32, fma_float64

pytestmark = pytest.mark.parity

SIZES = [(1,), (7,), (3, 11), (130,), (1000,)]
# More than three times the engine's smallest share (16384, kMinShare in csrc/batch.cpp), in
# tensors whose ends fall inside, outside and across the shares.
SHARED_SIZES = [(20001,), (5,), (0,), (123, 130), (16384,), (1,)]


def check(case: Case, sizes: list[tuple[int, ...]], dtype: torch.dtype, steps: int) -> None:
    optimizer = case.optimizer
    params = [parameter(size, dtype, seed=i) for i, size in enumerate(sizes)]
    reference = [Stepped(optimizer, p, **case.hyper) for p in params]
    ours = optimizer.ours(params, **case.hyper)
    for k, changes in enumerate(optimizer.changes[:steps]):
        ours.param_groups[0].update(changes)
        for i, (p, expected) in enumerate(zip(params, reference, strict=True)):
            p.grad = values(p.shape, dtype, seed=100 * k + i + 50, wide=True)
            expected.step(p.grad, **changes)
        ours.step()
        for p, expected in zip(params, reference, strict=True):
            expected.check(p, ours.state[p])


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_steps(any_case: Case, dtype: torch.dtype, isa: str) -> None:
    """Several steps, with lr, betas and kin changed between them, on every instruction set."""
    check(any_case, SIZES, dtype, steps=len(any_case.optimizer.changes))


@pytest.mark.engine_only("threads")
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=str)
def test_threads(any_case: Case, dtype: torch.dtype, threads: int) -> None:
    """The shares of a parallel step meet without a gap or an overlap."""
    torch.set_num_threads(threads)
    steps = 1 if dtype == torch.float64 else 2  # libm's fma, element by element, is slow
    check(any_case, SHARED_SIZES, dtype, steps)


@pytest.mark.engine_only("threads")
def test_threads_on_every_isa(optimizer: Optimizer, isa: str) -> None:
    torch.set_num_threads(3)
    check(Case(optimizer, list(optimizer.variants)[-1]), SHARED_SIZES, torch.float32, steps=2)


@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=str)
def test_grad_scale(any_case: Case, dtype: torch.dtype, isa: str) -> None:
    """The gradient is divided in the pass: the quotient is used unrounded, and stored rounded."""
    p = parameter((77,), dtype, seed=0)
    expected = Stepped(any_case.optimizer, p, **any_case.hyper)
    expected.hyper["grad_scale"] = 3.0
    ours = any_case.optimizer.ours([p], **any_case.hyper)
    for k in range(3):
        p.grad = values(p.shape, dtype, seed=k, wide=True)
        expected.step(p.grad)
        quotient = p.grad / 3
        ours.grad_scale, ours.found_inf = torch.tensor(3.0), torch.tensor(0.0)
        ours.step()
        expected.check(p, ours.state[p])
        assert_same_bits(p.grad, quotient, "gradient")


@pytest.mark.parametrize("dtype", REAL_DTYPES, ids=str)
def test_special_gradients(any_case: Case, dtype: torch.dtype, isa: str) -> None:
    """Zeros of both signs, infinities, NaN, and the smallest and largest numbers."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, info.tiny, info.max, -info.max, 1.0]
    special += [info.smallest_normal / 2, info.tiny * info.eps, -info.tiny * info.eps]
    p = parameter((len(special) * 5,), dtype, seed=0)
    p.data[: len(special)] = 0.0
    expected = Stepped(any_case.optimizer, p, **any_case.hyper)
    ours = any_case.optimizer.ours([p], **any_case.hyper)
    for _ in range(2):
        p.grad = torch.tensor(special, dtype=torch.float64).to(dtype).repeat(5)
        expected.step(p.grad)
        ours.step()
        expected.check(p, ours.state[p])


def rounded(x: Fraction, dtype: type) -> float:
    """A fraction, rounded to the nearest float of this type (all results here are normal)."""
    digits = np.finfo(dtype).nmant + 1
    if x == 0:
        return 0.0
    scale = Fraction(2) ** (digits + 2)
    exponent = 0
    while abs(x) >= 1:
        x, exponent = x / 2, exponent + 1
    while abs(x) < Fraction(1, 2):
        x, exponent = x * 2, exponent - 1
    scale = Fraction(2) ** digits
    return float(Fraction(round(x * scale)) / scale * Fraction(2) ** exponent)


@pytest.mark.parametrize(("fma", "dtype"), [(fma_float32, np.float32), (fma_float64, np.float64)])
def test_the_references_fma(fma: object, dtype: type) -> None:
    """The references' fused multiply-add against rational arithmetic, ties and cancellation too."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal(2000).astype(dtype)
    b = rng.standard_normal(2000).astype(dtype)
    c = rng.standard_normal(2000).astype(dtype)
    c[:500] = -(a * b)[:500]
    one, ulp = dtype(1), np.finfo(dtype).eps
    c[500:1000] = (a * b)[500:1000] * dtype(2.0 ** (np.finfo(dtype).nmant + 1))
    # 2 - ulp**2, 2 + 2 ulp + ulp**2 and 1 + 5/4 ulp: beside or between two neighbours.
    a[1000:1003], b[1000:1003] = one + ulp, [one - ulp, one + ulp, one]
    c[1000:1003] = [one, one, ulp / 4]
    # A hair beside a tie, nearer than float64 can tell: (1 + ulp) +- (1 - 4**-n) * ulp / 2 is to be
    # 1 + ulp, its odd neighbour, both times; rounded twice it would become the even ones.
    hair = dtype(2.0) ** -np.arange(15, 24).astype(dtype)
    for start, sign in ((1100, 1), (1200, -1)):
        these = slice(start, start + len(hair))
        a[these], b[these], c[these] = one + hair, (one - hair) * ulp / 2 * sign, one + ulp
    got = np.asarray(fma(a, b, c))
    exact = [
        rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), dtype)
        for x, y, z in zip(a, b, c, strict=True)
    ]
    np.testing.assert_array_equal(got, np.asarray(exact, dtype))


def test_the_engines_fma(isa: str) -> None:
    """A hair beside a tie, as above, through SGD: p - lr * g is to stay the odd 1 + ulp.

    The baseline has no such instruction; rounding twice there would seldom show in random numbers.
    """
    sgd = optimizer_named("sgd").ours
    for dtype in (torch.float32, torch.float64):
        ulp = torch.finfo(dtype).eps
        for n in range(15, 24):
            p = torch.nn.Parameter(torch.full((33,), 1 + ulp, dtype=dtype))
            p.grad = torch.full_like(p, (1 - 2.0**-n) * ulp / 2)
            p.grad[::2] *= -1
            sgd([p], lr=1 + 2.0**-n).step()
            assert (p == 1 + ulp).all(), (dtype, n)


def test_exact_is_close_to_float64(any_case: Case) -> None:
    """The mathematics and the float64 rounding contract are one formula: they stay ulps apart."""
    p = parameter((100,), torch.float64, seed=1)
    exact = Stepped(any_case.optimizer, p, "exact", **any_case.hyper)
    rounded_ = Stepped(any_case.optimizer, p, "float64", **any_case.hyper)
    starts = any_case.optimizer.starts(**any_case.hyper)
    rounded_.states = {name: np.array(starts[name]) for name in NUMBERS & starts.keys() - {"step"}}
    for k in range(3):
        g = values(p.shape, p.dtype, seed=k)
        exact.step(g)
        rounded_.step(g)
    np.testing.assert_allclose(rounded_.p, exact.p.astype(float), rtol=1e-13, atol=1e-13)


def test_a_wrong_dtype_name() -> None:
    with pytest.raises(ValueError, match="allowed: float32, float64, bfloat16, float16, exact"):
        rules.sgd(np.ones(1), np.ones(1), {}, dtype="float8")


def test_references_change_nothing_in_place(optimizer: Optimizer) -> None:
    p = to_numpy(values((5,), torch.float32, seed=0))
    g = to_numpy(values((5,), torch.float32, seed=1))
    before = p.copy(), g.copy()
    _, states = optimizer.reference(p, g, {}, step=1)
    copies = {name: s.copy() for name, s in states.items()}
    optimizer.reference(p, g, states, step=2)
    np.testing.assert_array_equal(p, before[0])
    np.testing.assert_array_equal(g, before[1])
    for name, s in states.items():
        np.testing.assert_array_equal(s, copies[name])
