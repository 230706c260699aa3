"""The compact formats on every instruction set against the NumPy reference, to the bit: every kind
of float32 there is, whole blocks and parts of one, by noise and to nearest.
"""

from __future__ import annotations

import numpy as np
import pytest
from support import assert_same_bits

from fastopt import _core
from fastopt.formats import BLOCK, FORMATS, Format, decode_split16, key, noise, words

# How each format may be rounded: noise of a kind has bits of its own.
ROUNDS = {
    "bfloat16": ("nearest", "weight", "positive", "signed"),
    "float16": ("nearest", "weight"),
    "signed8": ("nearest", "signed"),
    "positive8": ("nearest", "positive"),
    "split8": ("nearest", "weight"),
}
CASES = [(name, r) for name in FORMATS for r in ROUNDS.get(name, ("nearest",))]
SIZES = [0, 1, 5, 63, 64, 65, 127, 128, 130, 60000]


def patterns(count: int, seed: int = 0) -> np.ndarray:
    """Any bits at all; then blocks whose numbers are of like sizes, small, large or special."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 32, count, dtype=np.uint64).astype(np.uint32)
    block = np.arange(count) // BLOCK
    exponent = (block * 37 % 250 + rng.integers(0, 12, count)).astype(np.uint32)
    alike = bits & np.uint32(0x807FFFFF) | np.minimum(exponent, 254).astype(np.uint32) << np.uint32(
        23
    )
    bits = np.where(block % 4 != 0, alike, bits)
    bits = np.where((block % 8 == 5) & (rng.random(count) < 0.4), bits & np.uint32(1 << 31), bits)
    bits[rng.random(count) < 0.002] = 0x7F800000
    bits[rng.random(count) < 0.001] = 0xFFFFFFFF
    return np.asarray(bits.astype(np.uint32).view(np.float32))


def rounding(of: Format, rounds: str, word: np.ndarray) -> np.ndarray | None:
    return None if rounds == "nearest" else noise(word, rounds, of.noise_bits)


def encoded(name: str, rounds: str, x: np.ndarray, word: np.ndarray) -> tuple[np.ndarray, ...]:
    """What the engine makes of it, as planes of the format's types."""
    of = FORMATS[name]
    first, second = _core.encode(name, rounds, x, word)
    planes = (first.view(of.first),)
    return planes if of.second is None else (*planes, second.view(of.second))


def decoded(name: str, planes: tuple[np.ndarray, ...], count: int) -> np.ndarray:
    raw = [plane.view(np.uint8) for plane in planes]
    return np.asarray(_core.decode(name, raw[0], raw[1] if len(raw) > 1 else np.empty(0), count))


@pytest.mark.parametrize("count", SIZES)
@pytest.mark.parametrize(("name", "rounds"), CASES)
def test_encode_and_decode(name: str, rounds: str, count: int, isa: str) -> None:
    x = patterns(SIZES[-1])[:count]
    word = words(key(1, 2, 3), 0, count)
    want = FORMATS[name].encode(x, rounding(FORMATS[name], rounds, word))
    got = encoded(name, rounds, x, word)
    back = FORMATS[name].decode(*want)
    # Which NaN a float16 or a sum is, is the instruction set's.
    same = ~np.isnan(x) if "float16" in name or "rest" in name else np.full(count, True)
    np.testing.assert_array_equal(got[0][same], want[0][same])
    for a, b in zip(got[1:], want[1:], strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_bits(decoded(name, want, count), back)


@pytest.mark.parametrize("name", FORMATS)
def test_decode_anything(name: str, isa: str) -> None:
    """Any bits in both planes: a rest may be stale."""
    of, rng = FORMATS[name], np.random.default_rng(0)
    count = 1 << 16
    first = rng.permutation(np.arange(count)).astype(of.first)
    planes: tuple[np.ndarray, ...] = (first,)
    if of.shares > 1:
        planes += (rng.integers(1, 255, count // of.shares).astype(of.second),)
    elif of.second is not None:
        limits = np.iinfo(of.second)
        planes += (rng.integers(limits.min, limits.max, count, endpoint=True).astype(of.second),)
    assert_same_bits(decoded(name, planes, count), of.decode(*planes))


@pytest.mark.parametrize("element", [0, 64, 1000, (1 << 32) - 256, 1 << 32, 5 << 32 | 77])
def test_noise(element: int, isa: str) -> None:
    for seed, step, parameter, word in [(0, 1, 0, 0), (7, 12345, 3, 1), ((1 << 64) - 1, 1, 9, 0)]:
        want = words(key(seed, step, parameter, word), element, 200)
        got = _core.noise(seed, step, parameter, word, element, 200)
        np.testing.assert_array_equal(got, want)


def test_noise_is_what_it_was() -> None:
    """Steps that were saved go on by it."""
    assert words(key(1, 2, 3), 0, 3).tolist() == [2583629849, 3519565931, 597751972]


@pytest.mark.parametrize("start", range(0, 1 << 32, 1 << 29))
def test_split16_loses_nothing(start: int, isa: str) -> None:
    """A sample of all patterns; `python tests/every_pattern.py` takes every one."""
    check_split16(start + np.arange(0, 1 << 29, 4099, dtype=np.uint64))


def check_split16(bits: np.ndarray) -> None:
    x = bits.astype(np.uint32).view(np.float32)
    p, rest = encoded("split16", "nearest", x, np.zeros(len(x), np.uint32))
    np.testing.assert_array_equal(
        decode_split16(p, rest, exactly=True).view(np.uint32), x.view(np.uint32)
    )
    # What a step reads: all but signalling NaNs that hide beside zero.
    hidden = (p & 0x7FFF == 0) & (rest < 0) & np.isnan(x)
    back = decoded("split16", (p, rest), len(x))
    assert_same_bits(back[~hidden], x[~hidden])
    shown = (p.astype(np.uint32) << np.uint32(16)).view(np.float32)
    assert not shown[hidden].any()
    quiet = np.isnan(x) & (x.view(np.uint32) & np.uint32(0x400000) != 0)
    assert np.isnan(shown[quiet]).all()


def test_split16_of_signalling_nans(isa: str) -> None:
    for top in (0x7F80, 0xFF80):
        check_split16((top << 16) + np.arange(1 << 16, dtype=np.uint64))


def test_float16_corrections_are_exact() -> None:
    rng = np.random.default_rng(0)
    x = patterns(1 << 16)
    x = np.concatenate([x, rng.uniform(-70000, 70000, 1 << 16).astype(np.float32)])
    x = np.concatenate([x, (x[-(1 << 16) :] * np.float32(1e-8)).astype(np.float32)])
    back = FORMATS["rest16"].decode(*FORMATS["rest16"].encode(x))
    size = np.abs(x)
    exact = (size >= 2.0**-16) & (size < 65520)
    assert_same_bits(back[exact], x[exact])
    small = size < 2.0**-16
    assert np.abs(back[small].astype(float) - x[small]).max() <= 2.0**-40
    back = FORMATS["rest8"].decode(*FORMATS["rest8"].encode(x))
    normal = (size >= 2.0**-14) & (size < 65504)
    error = np.abs(back[normal].astype(float) - x[normal]) / size[normal]
    assert error.max() <= 2.0**-18


@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_bounds_of_codes(kind: str) -> None:
    """Within a 16th of |x| + c, a 32nd to nearest; zeros are zeros, and nothing else is."""
    x = patterns(1 << 18, seed=1)
    x = x if kind == "signed" else np.abs(x)
    of = FORMATS[f"{kind}8"]
    word = words(key(0, 1, 0), 0, len(x))
    for rounds in ("nearest", kind):
        codes, scales = of.encode(x, rounding(of, rounds, word))
        back = of.decode(codes, scales)
        e = np.repeat(scales, BLOCK).astype(int)
        finite = np.isfinite(x) & (e < 254)
        finite &= np.isfinite(back) | (np.abs(x) < 2.0**127 * (1 - 2.0**-7))  # beyond, infinite
        c = np.ldexp(1.0, e - 127)[finite]
        error = np.abs(back[finite].astype(float) - x[finite]) / (
            np.abs(x[finite].astype(float)) + c
        )
        smallest = (x[finite] != 0) & (np.abs(x[finite]) < c / 16) & (kind == "positive")
        assert error[~smallest].max() < (1 / 31 if rounds == "nearest" else 1 / 15)
        assert error.max() < 1 / 15
        assert not back[x == 0].any()
        if kind == "positive":
            assert (codes[x > 0] > 0).all()
        else:
            np.testing.assert_array_equal(np.signbit(back[codes > 0]), np.signbit(x[codes > 0]))
        assert (np.isnan(back) == np.isnan(x)).all()


@pytest.mark.parametrize("kind", ["signed", "positive"])
def test_codes_are_fixed_points(kind: str) -> None:
    """What has been decoded is coded as it was, by any noise: it does not wander."""
    of, rng = FORMATS[f"{kind}8"], np.random.default_rng(0)
    x = rng.standard_normal(1 << 16).astype(np.float32)
    x *= np.repeat(np.exp2(rng.integers(-60, 60, len(x) // BLOCK)), BLOCK).astype(np.float32)
    x = x if kind == "signed" else x * x
    codes, scales = of.encode(x, rounding(of, kind, words(key(0, 1, 0), 0, len(x))))
    back = of.decode(codes, scales)
    for step in range(5):
        again = of.encode(back, rounding(of, kind, words(key(0, step, 1), 0, len(x))))
        same = np.repeat(again[1] == scales, BLOCK)
        assert same.mean() > 0.9
        np.testing.assert_array_equal(again[0][same], codes[same])


@pytest.mark.parametrize(("name", "rounds"), [c for c in CASES if c[1] != "nearest"])
def test_noise_is_unbiased(name: str, rounds: str) -> None:
    """Means over many keys lie about the numbers, by no more than chance."""
    of, rng, keys = FORMATS[name], np.random.default_rng(0), 400
    x = rng.uniform(0.3, 1, 4096).astype(np.float32)
    total, squares = np.zeros(len(x)), np.zeros(len(x))
    for step in range(keys):
        word = words(key(5, step, 2), 0, len(x))
        error = of.decode(*of.encode(x, rounding(of, rounds, word))).astype(float) - x
        total += error
        squares += error * error
    spread = np.sqrt(np.maximum(squares - total * total / keys, 0))
    rounded = spread > 0  # not what the format holds as it is
    z = total[rounded] / spread[rounded]
    assert len(z) > 4000
    assert abs(z.mean()) < 5 / np.sqrt(len(z))
    assert 0.9 < np.sqrt((z * z).mean()) < 1.1


def test_unknown_names() -> None:
    empty = np.empty(0, np.uint8)
    with pytest.raises(ValueError, match="allowed: float32, bfloat16, float16, signed8"):
        _core.decode("int4", empty, empty, 0)
    with pytest.raises(ValueError, match="allowed: nearest, weight, positive, signed"):
        _core.encode("signed8", "up", empty, empty)
    with pytest.raises(ValueError, match="planes of the count's sizes"):
        _core.decode("signed8", empty, empty, 3)


def test_bytes() -> None:
    assert {name: of.bytes for name, of in FORMATS.items()} == {
        "float32": 4,
        "bfloat16": 2,
        "float16": 2,
        "signed8": 1 + 1 / 64,
        "positive8": 1 + 1 / 64,
        "split16": 4,
        "split8": 3,
        "rest16": 4,
        "rest8": 3,
    }
