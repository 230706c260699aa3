"""The compact storage formats in plain NumPy: what fastopt's engine writes, bit for bit.

A format keeps float32 numbers in one plane or two: bfloat16 in one; a block of 64 numbers as codes
of a byte with one scale for all; a 16-bit parameter beside which lies the rest of its float32.
Nothing here uses the compiled core: this is for checking it.

    codes, scales = FORMATS["positive8"].encode(v, noise(words(key(seed, step, 0), 0, len(v)), ...))

Rounding is to nearest, or by noise: bits added below the last place that is kept. They come from a
word an element, a function of (seed, step, parameter, global element index) and so the same on
every machine, for any number of threads and in any sharding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .rules.arithmetic import Array, round_to_bfloat16

BLOCK = 64  # numbers that share a scale: those that follow one another in the flat global index
U32 = np.uint32
INFINITY = U32(0x7F800000)
QUIET_NAN = U32(0x7FC00000)


# ---- keyed noise ----
def mix64(x: int) -> int:
    """S. Vigna's splitmix64."""
    mask = (1 << 64) - 1
    x = (x + 0x9E3779B97F4A7C15) & mask
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & mask
    return x ^ x >> 31


def key(seed: int, step: int, parameter: int, word: int = 0) -> int:
    """What the words of a parameter's elements at one step are made of.

    `step` counts from 1; `parameter` is its place over all param groups. A rule with several states
    of a kind rounds the second by another word.
    """
    return mix64(mix64(mix64(seed) ^ step) ^ (parameter + (word << 32)))


def words(of: int, first: int, count: int) -> Array:
    """32 bits for each element of [first, first + count) of a parameter with this key."""
    index = np.arange(first, first + count, dtype=np.uint64)
    low, high = index.astype(U32), index >> np.uint64(32)
    out = np.empty(count, U32)
    for upper in np.unique(high):
        here, k = high == upper, mix64(of ^ int(upper))
        h = low[here] * U32(0x9E3779B1) + U32(k & 0xFFFFFFFF)
        h ^= h >> U32(16)
        h += h << U32(9)
        h = ((h ^ h >> U32(14)) + U32(k >> 32)) * U32(0x735A2D97)
        out[here] = h ^ h >> U32(16)
    return out


def noise(word: Array, rounds: str, bits: int) -> Array:
    """The bits of a word that round a number of this kind, so many of them.

    Their leading bits are each kind's own; those below are shared.
    """
    if rounds == "positive":
        return np.asarray(word >> U32(32 - bits))
    if rounds == "signed":
        return np.asarray(word & U32((1 << bits) - 1))
    turned = word << U32(8) | word >> U32(24)  # a weight's
    return np.asarray((turned & U32(0xFFFF)) >> U32(16 - bits))


# ---- codes of a byte ----
def _blocks(x: Array) -> Array:
    count = -(-len(x) // BLOCK)
    return np.pad(x, (0, count * BLOCK - len(x))).reshape(count, BLOCK)


STEP_BITS = 19  # of a float's bits: 16 codes an octave
OCTAVES = {"signed": 7, "positive": 15}  # above c, of 127 and 255 codes


def encode8(kind: str, x: Array, r: Array | None = None) -> tuple[Array, Array]:
    """Code |x| + c: with 16 codes an octave above c, linearly below; c is a power of two.

    A block whose maximum is above 1.90625 of its power of two takes the next one: where a maximum
    was clipped at the top code it could not grow past its octave in small steps, and a second
    moment stayed 15 to 33 % low.
    """
    count = len(x)
    bits = _blocks(x.astype(np.float32).view(U32))
    magnitude = bits & U32(0x7FFFFFFF)
    top = magnitude.max(axis=1, initial=0, keepdims=True)
    octaves = U32(OCTAVES[kind])
    e = (top + U32(0xC0000)) >> U32(23)
    e = np.where(top >= INFINITY, U32(254), np.where(e > octaves, e - octaves, U32(1)))
    magnitude = np.where(magnitude > INFINITY, QUIET_NAN, magnitude)  # a payload could carry
    c = e << U32(23)
    with np.errstate(all="ignore"):
        above = (magnitude.view(np.float32) + c.view(np.float32)).view(U32) - c
    code = (above + (U32(1 << STEP_BITS - 1) if r is None else _blocks(r))) >> U32(STEP_BITS)
    if kind == "signed":
        code |= bits >> U32(24) & U32(128)
    else:
        code = np.maximum(code, np.minimum(magnitude, U32(1)))  # what is positive is never 0
    return code.astype(np.uint8).ravel()[:count], e.astype(np.uint8).ravel()


def decode8(kind: str, codes: Array, scales: Array) -> Array:
    code = _blocks(codes).astype(U32)
    c = scales.reshape(-1, 1).astype(U32) << U32(23)
    magnitude = code & U32(127) if kind == "signed" else code
    with np.errstate(all="ignore"):
        x = ((magnitude << U32(STEP_BITS)) + c).view(np.float32) - c.view(np.float32)
    bits = x.view(U32)
    if kind == "signed":
        bits = bits | (code & U32(128)) << U32(24)
    return np.asarray(bits.view(np.float32).ravel()[: len(codes)])


# ---- 16 bits ----
def encode_bfloat16(x: Array, r: Array | None = None) -> tuple[Array]:
    if r is None:
        bits = np.where(np.isnan(x), QUIET_NAN, round_to_bfloat16(x).view(U32))
    else:
        bits = x.view(U32)  # an infinity's lower half is zero, noise does not carry
        bits = np.where(np.isnan(x), bits | U32(0x400000), bits + r)
    return ((bits >> U32(16)).astype(np.uint16),)


def decode_bfloat16(p: Array) -> Array:
    return np.asarray((p.astype(U32) << U32(16)).view(np.float32))


def encode_float16(x: Array, r: Array | None = None) -> tuple[Array]:
    """By noise, one of the two neighbours: 13 bits of float32 are cut, below 2^-14 of the number
    that one addition lines up with the subnormal grid. Past 65504 that may be infinity.
    """
    with np.errstate(all="ignore"):
        if r is None:
            return (x.astype(np.float16).view(np.uint16),)
        bits = x.view(U32)
        magnitude = bits & U32(0x7FFFFFFF)
        lined = (magnitude.view(np.float32) + np.float32(2.0**-14)).view(U32) - U32(1 << 23)
    kept = np.where(magnitude < U32(113 << 23), lined, magnitude)
    half = np.minimum((kept + r >> U32(13)) - U32(112 << 10), U32(0x7C00))
    half = np.where(np.isnan(x), U32(0x7E00), half)
    return ((half | bits >> U32(16) & U32(0x8000)).astype(np.uint16),)


def decode_float16(p: Array) -> Array:
    return np.asarray(p.view(np.float16).astype(np.float32))


def encode_split16(x: Array, r: Array | None = None) -> tuple[Array, Array]:
    """The nearest bfloat16, ties away from zero, and the signed rest of the bits: no pattern of
    2^32 is lost. NaNs are cut; for signalling ones whose upper half is infinity's there is no pair
    left but zero with a negative rest.
    """
    bits = x.view(U32)
    magnitude = bits & U32(0x7FFFFFFF)
    p = (bits + U32(0x8000)) >> U32(16)
    p = np.where(magnitude > INFINITY, bits >> U32(16), p)
    hidden = (magnitude >= U32(0x7F808000)) & (magnitude < U32(0x7F810000))
    p = np.where(hidden, bits >> U32(16) & U32(0x8000), p)
    return p.astype(np.uint16), bits.astype(np.uint16).view(np.int16)


def decode_split16(p: Array, rest: Array, *, exactly: bool = False) -> Array:
    """`exactly`: read a zero with a negative rest as the NaN that it may stand for; else, as a step
    does, as a zero whose rest is stale, such as a pruned weight.
    """
    upper = p.astype(U32) << U32(16)
    x = upper + rest.astype(np.int32).view(U32)
    cut = rest.view(np.uint16).astype(U32)
    magnitude = upper & U32(0x7FFFFFFF)
    x = np.where(magnitude > INFINITY, upper | cut, x)
    lost = (magnitude == 0) & (rest < 0)
    x = np.where(lost, upper | INFINITY | cut if exactly else upper, x)
    return np.asarray(x.view(np.float32))


def encode_split8(x: Array, r: Array | None = None) -> tuple[Array, Array]:
    """A significand of 16 bits: bfloat16's eight and a signed byte below them."""
    bits = x.view(U32)
    y = bits + (U32(0x80) if r is None else r)
    nan = np.isnan(x)
    p = np.where(nan, (bits & U32(0x80000000) | QUIET_NAN) >> U32(16), (y + U32(0x8000)) >> U32(16))
    rest = np.where(nan, U32(0), y >> U32(8))
    return p.astype(np.uint16), rest.astype(np.uint8).view(np.int8)


def decode_split8(p: Array, rest: Array) -> Array:
    upper = p.astype(U32) << U32(16)
    x = upper + (rest.astype(np.int32).view(U32) << U32(8))
    nan = (x & U32(0x7FFFFFFF)) > INFINITY  # a stale rest beside infinity
    return np.asarray(np.where(nan, upper, x).view(np.float32))


def _unit(p: Array, places: int) -> Array:
    """2^-places of the last place of a float16 number."""
    exponent = np.maximum(p.view(U32) >> U32(23) & U32(255), U32(113))
    return np.asarray(((exponent - U32(10 + places)) << U32(23)).view(np.float32))


def encode_rest(places: int, x: Array, r: Array | None = None) -> tuple[Array, Array]:
    """The nearest float16 and the rest in fixed point; exact with 16 bits from 2^-16 up, else below
    an error of 2^-40. The patterns that round to zero or infinity are too many for an exact one.
    """
    with np.errstate(all="ignore"):
        half = x.astype(np.float16)
        p = half.astype(np.float32)
        rest = np.rint((x - p) / _unit(p, places))
        rest = np.where(np.isfinite(p), rest, np.float32(0))
    low = np.int8 if places == 8 else np.int16
    limits = np.iinfo(low)
    return half.view(np.uint16), np.clip(rest, limits.min, limits.max).astype(low)


def decode_rest(places: int, p: Array, rest: Array) -> Array:
    """Less the negative rest, so that no rest at all leaves -0 what it is."""
    with np.errstate(all="ignore"):
        wide = p.view(np.float16).astype(np.float32)
        return np.asarray(wide - (-rest.astype(np.int32)).astype(np.float32) * _unit(wide, places))


# ---- the table ----
@dataclass(frozen=True)
class Format:
    """How float32 numbers are stored. `encode(x, r)` gives the planes, rounded by `r`, `noise_bits`
    of noise each, or to nearest where it is None; `decode(*planes)` gives the numbers back.
    """

    encode: Callable[..., tuple[Array, ...]]
    decode: Callable[..., Array]
    first: Any  # the dtypes of both planes, unsigned for patterns of a floating type
    second: Any = None
    shares: int = 1  # numbers that one of the second plane belongs to
    noise_bits: int = 0  # 0: it always rounds to nearest

    @property
    def bytes(self) -> float:
        """Bytes of one number."""
        second = 0 if self.second is None else np.dtype(self.second).itemsize
        return float(np.dtype(self.first).itemsize + second / self.shares)


def _byte(kind: str) -> Format:
    def encode(x: Array, r: Array | None = None) -> tuple[Array, ...]:
        return encode8(kind, x, r)

    def decode(codes: Array, scales: Array) -> Array:
        return decode8(kind, codes, scales)

    return Format(encode, decode, np.uint8, np.uint8, BLOCK, STEP_BITS)


def _rest(places: int, dtype: Any) -> Format:
    def encode(x: Array, r: Array | None = None) -> tuple[Array, ...]:
        return encode_rest(places, x, r)

    def decode(p: Array, rest: Array) -> Array:
        return decode_rest(places, p, rest)

    return Format(encode, decode, np.uint16, dtype)


# By their names in csrc/formats.h.
FORMATS = {
    "float32": Format(lambda x, r=None: (x,), lambda x: x, np.float32),
    "bfloat16": Format(encode_bfloat16, decode_bfloat16, np.uint16, noise_bits=16),
    "float16": Format(encode_float16, decode_float16, np.uint16, noise_bits=13),
    "signed8": _byte("signed"),
    "positive8": _byte("positive"),
    "split16": Format(encode_split16, decode_split16, np.uint16, np.int16),
    "split8": Format(encode_split8, decode_split8, np.uint16, np.int8, noise_bits=8),
    "rest16": _rest(15, np.int16),
    "rest8": _rest(8, np.int8),
}
