"""Formats of streams on the device: a number as its dtype stores it, then the compact ones.

The codecs of fastopt/formats.py, with its bits, over tiles of a row for each block: a stream's
planes to float32 numbers and back, rounded by keyed noise.
"""

# mypy: disable-error-code="assignment,misc"
# Triton's language, where a tuple that grows has a new type each time.

from __future__ import annotations

import triton
import triton.language as tl
from triton import knobs

from ...formats import BLOCK as NUMBERS_OF_A_BLOCK

# The interpreter cuts bfloat16 off where every GPU rounds to nearest even: see `narrow`.
INTERPRETED = tl.constexpr(knobs.runtime.interpret)

BLOCK = tl.constexpr(NUMBERS_OF_A_BLOCK)
WORDS = tl.constexpr(3)  # of noise, of an element: see csrc/formats.h
INFINITY = tl.constexpr(0x7F800000)
QUIET_NAN = tl.constexpr(0x7FC00000)
SIGN = tl.constexpr(0x80000000)
MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # its bits; of a NaN they are more than infinity's


# ---- as the dtype says ----
@triton.jit
def widen(x, COMPUTE: tl.constexpr):
    if INTERPRETED and x.dtype == tl.bfloat16:
        x = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return x.to(COMPUTE)


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    if x.dtype == tl.float64 and DTYPE.primitive_bitwidth == 16:
        x = x.to(tl.float32)  # to 16 bits by way of float32, as the CPU engine does
    if INTERPRETED and DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        rounded = tl.where(x == x, rounded, 0x7FC0)
        return rounded.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(DTYPE)


# ---- keyed noise ----
@triton.jit
def mix64(x):
    x += 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def words(key, start, offsets):
    # Of the elements from `start` on, which have one upper half: it is a piece's.
    key = mix64(key ^ (start.to(tl.uint64) >> 32))
    h = (start.to(tl.uint32) + offsets.to(tl.uint32)) * 0x9E3779B1 + key.to(tl.uint32)
    h = h ^ (h >> 16)
    h += h << 9
    h = ((h ^ (h >> 14)) + (key >> 32).to(tl.uint32)) * 0x735A2D97
    return h ^ (h >> 16)


@triton.jit
def noise(words, STORED: tl.constexpr, BITS: tl.constexpr):
    # So many bits to add below the last place that is kept: half of it, to nearest.
    ROUNDS: tl.constexpr = STORED[1]
    if ROUNDS == "nearest":
        return 1 << (BITS - 1)
    else:
        word = words[STORED[2]]
        if ROUNDS == "positive":
            return word >> (32 - BITS)
        elif ROUNDS == "signed":
            return word & ((1 << BITS) - 1)
        else:
            return (((word << 8) | (word >> 24)) & 0xFFFF) >> (16 - BITS)


# ---- a stream's planes ----
@triton.jit
def bits_of(x):
    return x.to(tl.uint32, bitcast=True)


@triton.jit
def number(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def upper_half(p):
    return p.to(tl.uint16, bitcast=True).to(tl.uint32) << 16


@triton.jit
def signed(rest):
    return rest.to(tl.int32).to(tl.uint32, bitcast=True)


@triton.jit
def encode8(x, round, SIGNED: tl.constexpr):
    OCTAVES: tl.constexpr = 7 if SIGNED else 15
    bits = bits_of(x)
    size = bits & MAGNITUDE
    top = tl.max(size.to(tl.int32, bitcast=True), axis=1).to(tl.uint32, bitcast=True)
    e = (top + 0xC0000) >> 23
    e = tl.where(top >= INFINITY, 254, tl.where(e > OCTAVES, e - OCTAVES, 1))
    c = (e << 23)[:, None]
    # Which NaN an addition makes is the device's, and a payload could carry.
    above = tl.where(size > INFINITY, QUIET_NAN, bits_of(number(size) + number(c))) - c
    code = (above + round) >> 19
    if SIGNED:
        code |= (bits >> 24) & 128
    else:
        code = tl.maximum(code, tl.minimum(size, 1))  # what is positive is never 0
    return code.to(tl.uint8), e.to(tl.uint8)


@triton.jit
def decode8(codes, scales, SIGNED: tl.constexpr):
    code = codes.to(tl.uint32)
    c = (scales.to(tl.uint32) << 23)[:, None]
    size = code & 127 if SIGNED else code
    x = number((size << 19) + c) - number(c)
    if SIGNED:
        x = number(bits_of(x) | ((code & 128) << 24))
    return x


@triton.jit
def encode_split16(x):
    bits = bits_of(x)
    size = bits & MAGNITUDE
    p = tl.where(size > INFINITY, bits, bits + 0x8000)
    # Signalling NaNs for which no pair is left but zero with a negative rest.
    p = tl.where((size >= 0x7F808000) & (size < 0x7F810000), bits & SIGN, p)
    return p >> 16, bits.to(tl.uint16).to(tl.int16, bitcast=True)


@triton.jit
def decode_split16(p, rest):
    upper = upper_half(p)
    low, size = signed(rest), upper & MAGNITUDE
    x = tl.where(size > INFINITY, upper | (low & 0xFFFF), upper + low)
    # A zero whose rest is stale, such as a pruned weight.
    return number(tl.where((size == 0) & (rest < 0), upper, x))


@triton.jit
def encode_split8(x, round):
    bits = bits_of(x)
    nan, y = (bits & MAGNITUDE) > INFINITY, bits + round
    p = tl.where(nan, (bits & SIGN) | QUIET_NAN, y + 0x8000) >> 16
    rest = tl.where(nan, 0, y >> 8)
    return p, rest.to(tl.uint8).to(tl.int8, bitcast=True)


@triton.jit
def decode_split8(p, rest):
    upper = upper_half(p)
    x = upper + (signed(rest) << 8)
    stale = (x & MAGNITUDE) > INFINITY  # beside infinity
    return number(tl.where(stale, upper, x))


@triton.jit
def encode_float16(x, round):
    # One of the two neighbours: 13 bits are cut, below 2**-14 of the number that one addition lines
    # up with the subnormal grid.
    bits = bits_of(x)
    size = bits & MAGNITUDE
    lined = bits_of(number(size) + 6.103515625e-05) - (1 << 23)
    kept = tl.where(size < (113 << 23), lined, size)
    half = tl.minimum(((kept + round) >> 13) - (112 << 10), 0x7C00)
    half = tl.where(size > INFINITY, 0x7E00, half)
    return half | ((bits & SIGN) >> 16)


@triton.jit
def last_place(p):
    # Of a float16 number: where its exponent is, as float32's.
    return tl.maximum((bits_of(p) >> 23) & 255, 113) - 10


@triton.jit
def encode_rest(x, PLACES: tl.constexpr, LOW: tl.constexpr):
    half = x.to(tl.float16)
    p = half.to(tl.float32)
    # A power of two; then added to 1.5 * 2**23 a number is rounded to an integer, which the lower
    # bits hold.
    per_unit = number((254 + PLACES - last_place(p)) << 23)
    rest = bits_of((x - p) * per_unit + 12582912.0).to(tl.int32, bitcast=True) - 0x4B400000
    rest = tl.where((bits_of(p) & MAGNITUDE) < INFINITY, rest, 0)
    if PLACES == 8:
        rest = tl.minimum(tl.maximum(rest, -128), 127)
    return half, rest.to(LOW)


@triton.jit
def decode_rest(half, rest, PLACES: tl.constexpr):
    # Less the negative rest, so that no rest at all leaves -0 what it is.
    p = half.to(tl.float32)
    unit = number((last_place(p) - PLACES) << 23)
    return p - (-rest.to(tl.int32)).to(tl.float32) * unit


# ---- by format ----
# STORED, of a stream: (format, rounds, word) by the names of csrc/formats.h, or None where its
# dtype says all; of a kernel's streams: one of these each, or None where that is so of all.
@triton.constexpr_function
def stored_as(all_stored, k):
    return None if all_stored is None else all_stored[k]


@triton.constexpr_function
def format_of(stored):
    return "" if stored is None else stored[0]


@triton.constexpr_function
def second_plane(stored):
    """The type of a stream's second plane: uint8 of scales, else of rests; None if it has none."""
    name = "" if stored is None else stored[0]
    if name in ("signed8", "positive8"):
        return tl.uint8
    if name in ("split16", "rest16"):
        return tl.int16
    return tl.int8 if name in ("split8", "rest8") else None


@triton.constexpr_function
def words_used(all_stored):
    """How many words of noise an element needs."""
    count = 0
    for stored in all_stored or ():
        if stored is not None and stored[1] != "nearest":
            count = max(count, stored[2] + 1)
    return count


@triton.jit
def decode(planes, STORED: tl.constexpr, COMPUTE: tl.constexpr):
    """The numbers of a stream's planes."""
    FORMAT: tl.constexpr = format_of(STORED)
    if FORMAT == "signed8" or FORMAT == "positive8":
        return decode8(planes[0], planes[1], FORMAT == "signed8")
    elif FORMAT == "split16":
        return decode_split16(planes[0], planes[1])
    elif FORMAT == "split8":
        return decode_split8(planes[0], planes[1])
    elif FORMAT == "rest16" or FORMAT == "rest8":
        return decode_rest(planes[0], planes[1], 15 if FORMAT == "rest16" else 8)
    else:
        return widen(planes[0], COMPUTE)


@triton.jit
def encode(x, words, DTYPE: tl.constexpr, STORED: tl.constexpr):
    """The planes of a stream's numbers, the first of which has this dtype."""
    FORMAT: tl.constexpr = format_of(STORED)
    if FORMAT == "signed8" or FORMAT == "positive8":
        return encode8(x, noise(words, STORED, 19), FORMAT == "signed8")
    elif FORMAT == "split16":
        p, rest = encode_split16(x)
        return p.to(tl.uint16).to(DTYPE, bitcast=True), rest
    elif FORMAT == "split8":
        p, rest = encode_split8(x, noise(words, STORED, 8))
        return p.to(tl.uint16).to(DTYPE, bitcast=True), rest
    elif FORMAT == "rest16":
        return encode_rest(x, 15, tl.int16)
    elif FORMAT == "rest8":
        return encode_rest(x, 8, tl.int8)
    elif FORMAT == "float16":
        p = encode_float16(x, noise(words, STORED, 13))
        return (p.to(tl.uint16).to(DTYPE, bitcast=True),)
    elif FORMAT == "bfloat16":
        # An infinity's lower half is zero, so that noise does not carry; a NaN's may.
        bits = bits_of(x)
        nan = (bits & MAGNITUDE) > INFINITY
        p = tl.where(nan, bits | 0x400000, bits + noise(words, STORED, 16)) >> 16
        return (p.to(tl.uint16).to(DTYPE, bitcast=True),)
    else:
        return (narrow(x, DTYPE),)
