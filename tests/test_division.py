"""Adam's denominator, which csrc/simd/vec.h divides by a reciprocal and two fused operations: the
bits of a true division, for many divisors and mantissas, then at the ends of the range.

With g = 0, p = 0 and beta1 = 0.5 the new parameter is
-step_size * (m / 2) / (sqrt(beta2 * v) / root + eps), so a wrong last bit of sqrt(v) / root shows
in p for one of two numerators m, near 1 and near 2: the outer division can hide it for the other.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fastopt import functional

DTYPES = [torch.float32, torch.float64]
BETAS = [0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 0.9999]


def engine_and_division(
    v: np.ndarray, m: np.ndarray, beta2: float, step: int, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    kind = v.dtype.type
    p = torch.zeros(len(v), dtype=torch.from_numpy(v).dtype)
    functional.adam(
        [p],
        [torch.zeros_like(p)],
        [torch.from_numpy(m.copy())],
        [torch.from_numpy(v.copy())],
        [],
        [torch.tensor(step - 1, dtype=torch.float64)],
        amsgrad=False,
        beta1=0.5,
        beta2=beta2,
        lr=1.0,
        weight_decay=0.0,
        eps=eps,
        maximize=False,
    )
    with np.errstate(all="ignore"):
        root = kind(math.sqrt(1 - beta2**step))
        step_size = kind(1 / (1 - 0.5**step))
        denom = np.sqrt(kind(beta2) * v) / root + kind(eps)
        return p.numpy(), -(step_size * (m * kind(0.5)) / denom)


def check(v: np.ndarray, m: np.ndarray, beta2: float, step: int, eps: float) -> None:
    got, want = engine_and_division(v, m, beta2, step, eps)
    np.testing.assert_array_equal(got + 0, want + 0, f"beta2 {beta2}, step {step}")  # -0 is 0


@pytest.mark.parametrize("beta2", BETAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_early_step(dtype: torch.dtype, beta2: float) -> None:
    """Each of the first 2000 bias corrections is another divisor; then some late ones."""
    rng = np.random.default_rng(0)
    kind = torch.empty(0, dtype=dtype).numpy().dtype.type
    ulp = np.finfo(kind).eps
    for step in [*range(1, 2001), 10**4, 10**5, 10**6]:
        v = (rng.uniform(1, 4, 512) * 4.0 ** rng.integers(-20, 20, 512)).astype(kind)
        m = rng.choice([1.0, 2.0 - ulp], 512).astype(kind)
        check(v, m, beta2, step, eps=0.0)


@pytest.mark.parametrize("beta2", BETAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_mantissas(dtype: torch.dtype, beta2: float, isa: str) -> None:
    """A few divisors, many dividends; tails and every instruction set."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype.type
    v = np.random.default_rng(1).uniform(1, 4, 100_003).astype(kind)
    m = np.where(np.arange(len(v)) % 2, 1, 2 - np.finfo(kind).eps).astype(kind)
    for step in [1, 2, 3, 10, 1000]:
        check(v, m, beta2, step, eps=1e-8)


@pytest.mark.parametrize("beta2", [0.5, 0.999, 1 - 2.0**-24, 1 - 2.0**-53])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ends_of_the_range(dtype: torch.dtype, beta2: float, isa: str) -> None:
    """0, infinity, NaN, subnormal, smallest and largest v, and divisors near 0: as a division."""
    kind = torch.empty(0, dtype=dtype).numpy().dtype.type
    info = np.finfo(kind)
    v = [0, np.inf, np.nan, info.smallest_subnormal, info.tiny, info.max, -1.0, 1.0]
    v += [info.smallest_subnormal * 3, info.tiny / 2, info.tiny * 3, info.max / 3]
    v = np.asarray(v * 3, kind)
    for m in (0.0, 1.0, -1.0, info.max, info.tiny, np.inf):
        for eps in (0.0, 1e-8):
            for step in (1, 2, 1000):
                check(v, np.full_like(v, m), beta2, step, eps)


@pytest.mark.parametrize("size", [1e-30, 1e-24, 1e-23, 1e-20, 1e-10, 1e15, 1e19])
def test_small_and_large_gradients(size: float, isa: str) -> None:
    """Gradients whose squares are subnormal, zero or infinite in float32, through whole steps."""
    rng = np.random.default_rng(2)
    g = (rng.uniform(0.5, 2, 100) * size).astype(np.float32)
    f = np.float32
    p = torch.zeros(100)
    functional.adam(
        [p],
        [torch.from_numpy(g)],
        [torch.zeros(100)],
        [torch.zeros(100)],
        [],
        [torch.tensor(0.0)],
        amsgrad=False,
        beta1=0.5,
        beta2=0.999,
        lr=1.0,
        weight_decay=0.0,
        eps=0.0,
        maximize=False,
    )
    with np.errstate(all="ignore"):
        v = (f(1 - 0.999) * g).astype(np.float64) * g  # exact in float64, then rounded once
        denom = np.sqrt(v.astype(f)) / f(math.sqrt(1 - 0.999))
        np.testing.assert_array_equal(p.numpy(), -(f(2) * (g * f(0.5)) / denom))
