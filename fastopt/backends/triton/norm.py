"""The norm of all gradients: the sum by halving, a launch of block sums, one program for the rest.

The bits are those of `fastopt.rules.passes.total_norm`: every addition has two given operands, so
that no layout of threads shows in the sum.
"""

# mypy: disable-error-code="assignment,misc"
# Triton's language, where a tuple that grows has a new type each time.

from __future__ import annotations

import triton
import triton.language as tl

from .kernel import SKIPS, UNSCALES
from .streams import ANY, FULL, load

NORM_BLOCK = tl.constexpr(1024)
# Of the one program that adds the block sums: how many rows of NORM_BLOCK it has under way at once.
ROWS = tl.constexpr(8)
TABLES = ["blocks", "rows", "grads", "first_sums", "sums", "nonfinite"]
FINISH_OF = [
    "sums", "nonfinite", "count", "numbers", "factors", "groups", "norm", "skip", "skipped",
    "found_inf", "grad_scale",
]  # fmt: skip


@triton.jit
def halve(x, SIZE: tl.constexpr):
    """Add the second half of SIZE numbers, a power of two, to the first until one is left."""
    if SIZE == 2:
        return tl.sum(x, axis=0)
    else:
        return halve(tl.sum(tl.reshape(x, (2, SIZE // 2)), axis=0), SIZE // 2)


@triton.jit
def load_blocks(
    grad, start, n, COMPUTE: tl.constexpr, COUNT: tl.constexpr, SLICE: tl.constexpr,
    PATH: tl.constexpr,
):  # fmt: skip
    """COUNT blocks as slices, all asked for before any is used."""
    VECTOR: tl.constexpr = 128 // grad.dtype.element_ty.primitive_bitwidth
    slices = ()
    offsets = tl.arange(0, SLICE)
    for k in tl.static_range(COUNT * (NORM_BLOCK // SLICE)):
        at = start + k * SLICE
        x = load(grad, at, offsets, at + offsets < n, COMPUTE, VECTOR, PATH)
        slices = slices + (x,)  # noqa: RUF005
    return slices


@triton.jit
def sum_blocks(
    grad, start, n, sums, nonfinite, COMPUTE: tl.constexpr, COUNT: tl.constexpr,
    SLICE: tl.constexpr, PATH: tl.constexpr,
):  # fmt: skip
    PER_BLOCK: tl.constexpr = NORM_BLOCK // SLICE
    slices = load_blocks(grad, start, n, COMPUTE, COUNT, SLICE, PATH)
    for block in tl.static_range(COUNT):
        squares = ()
        odd = tl.zeros([SLICE], tl.int32)
        for k in tl.static_range(PER_BLOCK):
            x = slices[block * PER_BLOCK + k].to(tl.float64)
            if COMPUTE == tl.float64:  # noqa: SIM300
                odd = tl.where(x - x == 0, odd, 1)
            squares = squares + (x * x,)  # noqa: RUF005
        # Halving whole slices first: additions within a thread.
        for level in tl.static_range(1, 10):
            if (PER_BLOCK >> level) > 0:
                added = ()
                for k in tl.static_range(PER_BLOCK >> level):
                    added = added + (squares[k] + squares[k + (PER_BLOCK >> level)],)  # noqa: RUF005
                squares = added
        total = halve(squares[0], SLICE)
        # Squares of finite doubles overflow too: there only the numbers themselves can tell.
        bad = tl.max(odd, axis=0) if COMPUTE == tl.float64 else (total - total != 0).to(tl.int32)  # noqa: SIM300
        tl.store(sums + block, total)
        tl.store(nonfinite + block, bad)


@triton.jit(do_not_specialize_on_alignment=TABLES)
def square_sums(
    blocks, rows, grads, first_sums, sums, nonfinite,
    WIDTH: tl.constexpr, DTYPE: tl.constexpr, COMPUTE: tl.constexpr, COUNT: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """Sum the squares of COUNT blocks of NORM_BLOCK numbers of one gradient.

    blocks, rows, grads: as of `multi_tensor`, a row WIDTH wide. first_sums: where a tensor's sums
    begin in sums (double) and nonfinite (1 where a number is NaN or infinite). DTYPE: the
    gradients'.
    """
    entry = tl.load(blocks + tl.program_id(0))
    tensor = entry >> 32
    block = (entry & 0xFFFFFFFF) * COUNT
    grad = tl.load(grads + tensor)
    numbers = grad.to(tl.pointer_type(DTYPE))
    n = tl.where(grad == 0, 0, tl.load(rows + tensor * WIDTH))
    first = tl.load(first_sums + tensor) + block
    start = tl.multiple_of(block * NORM_BLOCK, NORM_BLOCK)
    if (grad % 16 == 0) & (start + COUNT * NORM_BLOCK <= n):
        sum_blocks(numbers, start, n, sums + first, nonfinite + first, COMPUTE, COUNT, SLICE, FULL)
    else:
        # In a loop, as it is rare: unrolled, it would set the registers of the path above.
        end = tl.minimum(start + COUNT * NORM_BLOCK, n)
        while start < end:
            sum_blocks(numbers, start, n, sums + first, nonfinite + first, COMPUTE, 1, SLICE, ANY)
            start += NORM_BLOCK
            first += 1


@triton.jit(do_not_specialize=["count", "groups"], do_not_specialize_on_alignment=FINISH_OF)
def finish_norm(
    sums, nonfinite, count, numbers, factors, groups, norm, skip, skipped, found_inf, grad_scale,
    SCALER: tl.constexpr, SKIPS_NONFINITE: tl.constexpr,
):  # fmt: skip
    """Add `count` block sums and write the norm, then the factor that each group clips by.

    Where it SKIPS_NONFINITE, `skip` is what `found_inf` is to GradScaler, which it takes in, and
    `skipped` counts. One program.
    """
    place = tl.arange(0, NORM_BLOCK)
    places = tl.zeros([NORM_BLOCK], tl.float64)
    bad = tl.zeros([NORM_BLOCK], tl.int32)
    for start in range(0, count, ROWS * NORM_BLOCK):
        under_way = ()
        for k in tl.static_range(ROWS):
            at = start + k * NORM_BLOCK + place
            row = tl.load(sums + at, mask=at < count, other=0)
            under_way = under_way + (row,)  # noqa: RUF005
            bad = bad | tl.load(nonfinite + at, mask=at < count, other=0)
        for k in tl.static_range(ROWS):
            places = places + under_way[k]
    total = tl.sqrt(halve(places, NORM_BLOCK))
    if SCALER == UNSCALES:
        total = total / tl.load(grad_scale).to(tl.float64)
    tl.store(norm, total)
    for start in range(0, groups, NORM_BLOCK):
        group = start + place
        limit = tl.load(numbers + group * 4, mask=group < groups, other=0)
        factor = limit / (total + 1e-6)
        factor = tl.where((factor > 1) | (limit < 0), 1.0, factor)  # NaN stays NaN
        tl.store(factors + group, factor, mask=group < groups)
    if SKIPS_NONFINITE:
        skips = tl.max(bad, axis=0) != 0
        if SCALER >= SKIPS:
            skips = skips | (tl.load(found_inf) != 0)
        tl.store(skip, skips.to(tl.float32))
        tl.store(skipped, tl.load(skipped) + skips.to(tl.int64))
