"""bfloat16 and float16, widened and narrowed on every instruction set, against torch's conversions:
all 65536 patterns, then every kind of float32 that must be rounded.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastopt import _core

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PATTERNS = np.arange(65536, dtype=np.uint16)


def bits(t: torch.Tensor) -> np.ndarray:
    """The bits of a tensor's numbers, as unsigned integers."""
    if t.element_size() == 2:
        return t.view(torch.int16).numpy().view(np.uint16)
    return t.view(torch.int32).numpy().view(np.uint32)


def tensor_of(patterns: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
    return torch.from_numpy(patterns.view(np.int16)).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_widen_all(dtype: str, isa: str) -> None:
    """Exact for every number; a NaN keeps its sign and payload, made quiet if need be."""
    got = _core.widen(dtype, PATTERNS).view(np.uint32)
    want = bits(tensor_of(PATTERNS, DTYPES[dtype]).float())
    nan = np.isnan(want.view(np.float32))
    np.testing.assert_array_equal(got[~nan], want[~nan])
    assert np.isnan(got[nan].view(np.float32)).all()
    quiet = np.uint32(1 << 22)
    np.testing.assert_array_equal(got[nan] | quiet, want[nan] | quiet)


@pytest.mark.parametrize("dtype", DTYPES)
def test_widen_then_narrow_is_the_identity(dtype: str, isa: str) -> None:
    back = _core.narrow(dtype, _core.widen(dtype, PATTERNS))
    nan = np.isnan(_core.widen(dtype, PATTERNS))
    np.testing.assert_array_equal(back[~nan], PATTERNS[~nan])
    assert np.isnan(_core.widen(dtype, back[nan])).all()


def halfway_cases(dtype: str) -> np.ndarray:
    """Every number of the type, every middle of two neighbours, and the floats next to those."""
    finite = tensor_of(PATTERNS[: 0x7F80 if dtype == "bfloat16" else 0x7C00], DTYPES[dtype])
    numbers = finite.double().numpy()
    middles = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    step = numbers[-1] - numbers[-2]
    overflow = np.float64(numbers[-1] + step / 2)  # the first number that rounds to infinity
    with np.errstate(over="ignore"):
        points = np.concatenate([numbers.astype(np.float32), middles, [np.float32(overflow)]])
        points = points.astype(np.float32)
        near = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, -points)]
    return np.concatenate(near + [-x for x in near])


def dense_sample() -> np.ndarray:
    """Every sign and exponent with 2048 mantissas, ends included: NaNs and infinities too."""
    rng = np.random.default_rng(0)
    mantissas = np.concatenate([np.arange(64), (1 << 23) - 1 - np.arange(64)])
    mantissas = np.concatenate([mantissas, rng.integers(0, 1 << 23, 1920)]).astype(np.uint32)
    tops = np.arange(512, dtype=np.uint32) << np.uint32(23)
    return (tops[:, None] | mantissas[None, :]).reshape(-1).view(np.float32)


@pytest.mark.parametrize("sample", ["halfway", "dense"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_narrow(dtype: str, sample: str, isa: str) -> None:
    """To the nearest, ties to even, overflow to infinity, subnormals too; NaN stays NaN."""
    numbers = halfway_cases(dtype) if sample == "halfway" else dense_sample()
    got = _core.narrow(dtype, numbers)
    want = bits(torch.from_numpy(numbers).to(DTYPES[dtype]))
    nan = np.isnan(numbers)
    np.testing.assert_array_equal(got[~nan], want[~nan])
    assert np.isnan(_core.widen(dtype, got[nan])).all()


@pytest.mark.parametrize("length", [0, 1, 3, 15, 16, 17, 33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths(dtype: str, length: int, isa: str) -> None:
    """Tails convert as whole vectors do."""
    patterns = PATTERNS[1000 : 1000 + length]
    wide = _core.widen(dtype, patterns)
    np.testing.assert_array_equal(wide, tensor_of(patterns, DTYPES[dtype]).float().numpy())
    np.testing.assert_array_equal(_core.narrow(dtype, wide), patterns)


def test_an_unknown_dtype() -> None:
    with pytest.raises(ValueError, match="allowed: bfloat16, float16"):
        _core.widen("float8", PATTERNS)
