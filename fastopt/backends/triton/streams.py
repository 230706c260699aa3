"""Pieces of a tensor's streams: the elements of one, then how its planes are read and written."""

# mypy: disable-error-code="assignment,misc"
# Triton's language, where a tuple that grows has a new type each time.

from __future__ import annotations

import triton
import triton.language as tl

from .formats import BLOCK, decode, encode, second_plane, widen

# How a piece of a tensor is accessed: whole vectors without a mask, with one, single elements.
FULL = tl.constexpr(2)
VECTORS = tl.constexpr(1)
ANY = tl.constexpr(0)


@triton.jit
def elements(LANES: tl.constexpr, STORED: tl.constexpr):
    # A row for each block of a compact format, whose maximum is then along an axis.
    if STORED is not None:
        # Not a reshape, through which Triton before 3.9 sees no neighbours: single accesses.
        return tl.arange(0, LANES // BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    else:
        return tl.arange(0, LANES)


@triton.jit
def piece(at, start, VECTOR: tl.constexpr, PATH: tl.constexpr):
    # Where it begins. An access is as wide as this promises: as many elements of every stream, or
    # numbers would go from thread to thread, through shared memory.
    at += start
    if PATH != ANY:
        at = tl.multiple_of(at, VECTOR * at.dtype.element_ty.primitive_bitwidth // 8)
    return at


@triton.jit
def load_plane(at, start, offsets, mask, VECTOR: tl.constexpr, PATH: tl.constexpr):
    at = piece(at, start, VECTOR, PATH)
    if PATH == FULL:
        return tl.load(at + offsets)
    else:
        return tl.load(at + offsets, mask=mask, other=0)


@triton.jit
def store_plane(at, start, offsets, mask, x, VECTOR: tl.constexpr, PATH: tl.constexpr):
    at = piece(at, start, VECTOR, PATH)
    if PATH == FULL:
        tl.store(at + offsets, x)
    else:
        tl.store(at + offsets, x, mask=mask)


@triton.jit
def load(
    at, start, offsets, mask, COMPUTE: tl.constexpr, VECTOR: tl.constexpr, PATH: tl.constexpr
):  # fmt: skip
    return widen(load_plane(at, start, offsets, mask, VECTOR, PATH), COMPUTE)


# A stream is a pointer to its first plane and the address of the second, where its format has one;
# STORED: see formats.decode. A place: where a piece starts, how many elements are left from there
# on, and which of these are the program's, by their offsets.
@triton.jit
def opened(
    stream, place, STORED: tl.constexpr, COMPUTE: tl.constexpr, VECTOR: tl.constexpr,
    PATH: tl.constexpr,
):  # fmt: skip
    """The numbers of a piece of a stream."""
    SECOND: tl.constexpr = second_plane(STORED)
    start, left, offsets = place
    planes = (load_plane(stream[0], start, offsets, offsets < left, VECTOR, PATH),)
    if SECOND is not None:
        at = stream[1].to(tl.pointer_type(SECOND))
        if SECOND == tl.uint8:  # noqa: SIM300
            rows = tl.arange(0, offsets.shape[0])
            low = load_plane(at, start // BLOCK, rows, rows * BLOCK < left, 1, PATH)
        else:
            low = load_plane(at, start, offsets, offsets < left, VECTOR, PATH)
        planes = planes + (low,)  # noqa: RUF005
    return decode(planes, STORED, COMPUTE)


@triton.jit
def closed(
    x, words, stream, place, STORED: tl.constexpr, VECTOR: tl.constexpr, PATH: tl.constexpr
):  # fmt: skip
    """Write a piece of a stream; returns the planes that its numbers have become."""
    SECOND: tl.constexpr = second_plane(STORED)
    start, left, offsets = place
    if SECOND == tl.uint8 and PATH != FULL:  # noqa: SIM300
        x = tl.where(offsets < left, x, 0.0)  # made of no elements: it counts in no maximum
    planes = encode(x, words, stream[0].dtype.element_ty, STORED)
    store_plane(stream[0], start, offsets, offsets < left, planes[0], VECTOR, PATH)
    if SECOND is not None:
        at = stream[1].to(tl.pointer_type(SECOND))
        if SECOND == tl.uint8:  # noqa: SIM300
            rows = tl.arange(0, offsets.shape[0])
            store_plane(at, start // BLOCK, rows, rows * BLOCK < left, planes[1], 1, PATH)
        else:
            store_plane(at, start, offsets, offsets < left, planes[1], VECTOR, PATH)
    return planes
