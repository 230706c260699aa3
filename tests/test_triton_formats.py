"""The compact formats' codecs and noise on the device against the NumPy reference, to the bit, in
Triton's interpreter: see test_triton_interpreted.py for when it runs.
"""

# mypy: disable-error-code="no-untyped-def,untyped-decorator"

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from test_formats import CASES, patterns, rounding

from fastopt.formats import BLOCK, FORMATS, key, words

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1", allow_module_level=True)

import triton
import triton.language as tl

from fastopt.backends.triton import formats, kernel, streams

pytestmark = pytest.mark.parity

LANES = 1 << 13
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DTYPES |= {"split16": torch.bfloat16, "split8": torch.bfloat16}
DTYPES |= {"rest16": torch.float16, "rest8": torch.float16}


@triton.jit
def write(x, keys, start, count, first, second, STORED: tl.constexpr, LANES: tl.constexpr):
    place = (start * 0, count, streams.elements(LANES, (STORED,)))
    numbers = tl.load(x + place[2], mask=place[2] < count, other=1e30)
    random = (formats.words(tl.load(keys).to(tl.uint64, bitcast=True), start, place[2]),)
    streams.closed(numbers, random, (first, second), place, STORED, 1, streams.ANY)


@triton.jit
def read(x, start, count, first, second, STORED: tl.constexpr, LANES: tl.constexpr):
    place = (start, count, streams.elements(LANES, (STORED,)))
    numbers = streams.opened((first, second), place, STORED, tl.float32, 1, streams.ANY)
    tl.store(x + place[2], numbers, mask=place[2] < count)


@triton.jit
def draw(out, keys, start, LANES: tl.constexpr):
    offsets = tl.arange(0, LANES)
    word = formats.words(tl.load(keys).to(tl.uint64, bitcast=True), start, offsets)
    tl.store(out + offsets, word.to(tl.int32, bitcast=True))


def as_stored(name: str, rounds: str = "nearest") -> tuple[str, str, int] | None:
    plain = name == "float32" or (name in ("bfloat16", "float16") and rounds == "nearest")
    return None if plain else (name, rounds, 0)


def tensor(name: str, plane: np.ndarray) -> torch.Tensor:
    """A first plane; torch has no signed type for bytes' codes and no patterns of 16 bits."""
    raw = torch.from_numpy(plane.view(np.int16) if plane.dtype == np.uint16 else plane)
    return raw.view(DTYPES.get(name, torch.uint8))


def launch(function: Any, *arguments: Any, **constants: Any) -> None:
    with np.errstate(all="ignore"):
        function[(1,)](*arguments, **constants)


def key_table(of: int) -> torch.Tensor:
    return torch.from_numpy(np.array([of], np.uint64).view(np.int64))


@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000, LANES])
@pytest.mark.parametrize(("name", "rounds"), dict.fromkeys([*CASES, ("float16", "weight")]))
def test_encode(name: str, rounds: str, count: int) -> None:
    """Every kind of float32, parts of a block; what lies behind the end is left alone."""
    x, of, noise_key = patterns(LANES)[:count], FORMATS[name], key(1, 2, 3)
    want = of.encode(x, rounding(of, rounds, words(noise_key, 0, count)))
    first = np.full(LANES, 3, of.first)
    second = np.full(LANES, 3, of.second or np.uint8)
    start = torch.zeros(1, dtype=torch.int64)
    launch(
        write, torch.from_numpy(x.copy()), key_table(noise_key), int(start), count,
        tensor(name, first), second.ctypes.data, STORED=as_stored(name, rounds), LANES=LANES,
    )  # fmt: skip
    # Which NaN a float16 or a sum is, is the processor's.
    same = ~np.isnan(x) if "float16" in name or "rest" in name else np.full(count, True)
    np.testing.assert_array_equal(first[:count][same], want[0][same])
    assert (first[count:] == 3).all()
    if of.second is not None:
        np.testing.assert_array_equal(second[: len(want[1])], want[1])
        assert (second[len(want[1]) :] == 3).all()


@pytest.mark.parametrize("name", FORMATS)
def test_decode_anything(name: str) -> None:
    """Any bits in both planes: a rest may be stale."""
    of, rng = FORMATS[name], np.random.default_rng(0)
    raw = rng.integers(0, 256, (2, 4 * LANES)).astype(np.uint8)
    first = np.ascontiguousarray(raw[0].view(of.first)[:LANES])
    second = np.ascontiguousarray(raw[1].view(of.second or np.uint8)[:LANES])
    if of.shares > 1:
        second = np.clip(second, 1, 254)
    planes = (first,) if of.second is None else (first, second[: LANES // of.shares])
    out = torch.zeros(LANES)
    launch(
        read, out, 0, LANES, tensor(name, first), second.ctypes.data, STORED=as_stored(name),
        LANES=LANES,
    )  # fmt: skip
    got, want = out.numpy(), of.decode(*planes)
    nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), nan)
    np.testing.assert_array_equal(got.view(np.uint32)[~nan], want.view(np.uint32)[~nan])


@pytest.mark.parametrize("start", [0, 64, 1 << 20, (1 << 32) - 256, 1 << 32, 5 << 32 | 1 << 31])
def test_noise(start: int) -> None:
    for of in (key(0, 1, 0), key(7, 12345, 3, 1), key((1 << 64) - 1, 1, 9)):
        out = np.zeros(256, np.uint32)
        launch(draw, torch.from_numpy(out.view(np.int32)), key_table(of), start, LANES=256)
        np.testing.assert_array_equal(out, words(of, start, 256))


def test_blocks_are_those_of_the_reference() -> None:
    assert formats.BLOCK.value == BLOCK
    assert formats.WORDS.value == 3
    assert kernel.words_used is formats.words_used
