"""The kernels of a step: one piece, every tensor, completing its scalars, then the step counts.

`multi_tensor` updates all tensors of a bucket in one launch: it finds its block's tensor in a
table, that tensor's pointers in its row, its group's numbers in the table of scalars. Tables hold
int64, because one tensor alone may have more than 2**31 elements. Where a rule's update waits for
norms, it runs once more before that, to measure, and `complete_scalars` after it. `count_steps`
runs before them where the host does not know the step: it counts on the device and writes that
table of scalars, and of the keys of the noise that compact formats are rounded by.
"""

# mypy: disable-error-code="assignment,misc"
# Triton's language, where a tuple that grows has a new type each time.

from __future__ import annotations

import triton
import triton.language as tl

from .formats import WORDS, decode, mix64, narrow, second_plane, stored_as, words, words_used
from .rules.arithmetic import divide, lerp, rounded
from .streams import ANY, FULL, VECTORS, closed, elements, opened

# SCALER, from Scaler.mode; 0 where there is no GradScaler.
SKIPS = tl.constexpr(1)
UNSCALES = tl.constexpr(2)

# Kernels read tables one number at a time: alignment or a value of 1 is worth no recompilation.
TABLES = [
    "blocks", "rows", "grads", "scalars", "keys", "found_inf", "grad_scale",
    "groups", "numbers", "factors", "begins", "sums",
]  # fmt: skip
COUNTS_OF = [
    "tensors", "grads", "carried", "groups", "fresh", "hyper", "hyper_at", "scalars", "found_inf",
    "unwritten", "begins", "places", "seeds", "keys",
]  # fmt: skip


@triton.jit
def prepared(g, p, sign, passes):
    # The gradient that the rule is given; a group without one of the terms has a neutral number.
    factor, limit, l1, _weight, _begins = passes
    g = g * factor
    g = tl.where(g > limit, limit, g)
    g = tl.where(g < -limit, -limit, g) * sign
    # Selected: adding zero would change the sign of a zero.
    return tl.where(l1 != 0, g + tl.where(p > 0, l1, tl.where(p < 0, -l1, 0.0)), g)


@triton.jit
def total_of(x):
    if len(x.shape) == 2:
        x = tl.sum(x, axis=1)
    return tl.sum(x, axis=0)


@triton.jit
def square_sum(x, mask):
    x = tl.where(mask, x, 0.0).to(tl.float64)
    return total_of(x * x)


@triton.jit
def two_sum(high, low, more_high, more_low):
    # A sum and what its roundings have lost: as TwoSum in csrc/kernels.h.
    total = high + more_high
    part = total - high
    lost = (high - (total - part)) + (more_high - part)
    return total, low + (more_low + lost)


@triton.jit
def twice_summed(x):
    """The sum of up to 1024 numbers that are not negative, in two: first what a number 2048 times
    the largest leaves of each, multiples of one unit, which add up without rounding; then the rest.
    """
    largest = tl.max(x, axis=1) if len(x.shape) == 2 else x
    above = tl.max(largest, axis=0) * 2048
    first = tl.where(above - above == 0, (x + above) - above, x)
    return total_of(first), total_of(x - first)


@triton.jit
def square_sums(x, mask):
    # The squares of floats are exact in double, and their sum is near enough.
    x = tl.where(mask, x, 0.0)
    if x.dtype == tl.float64:
        high, low = twice_summed(x * x)
    else:
        high = square_sum(x, mask)
        low = high * 0
    return high, low


@triton.jit
def added(total, squares, MEASURES: tl.constexpr):
    if MEASURES:
        norm = two_sum(total[0], total[1], squares[0], squares[1])
        return norm + two_sum(total[2], total[3], squares[2], squares[3])
    else:
        return total[0] + squares[0], total[1] + squares[1], total[2] + squares[2]


@triton.jit
def update(
    start, end, streams, keys, scalars, sign, scale, passes,
    RULE: tl.constexpr, VARIANT: tl.constexpr, STATES: tl.constexpr, COMPUTE: tl.constexpr,
    STORED: tl.constexpr, SCALER: tl.constexpr, PREPARES: tl.constexpr, AVERAGES: tl.constexpr,
    CLEARS: tl.constexpr, TRACKS: tl.constexpr, MEASURES: tl.constexpr, VECTOR: tl.constexpr,
    LANES: tl.constexpr, PATH: tl.constexpr,
):  # fmt: skip
    """Update LANES elements from `start` on, before `end`; `streams`: param, gradient, states,
    average.

    Returns the sums of squares of gradient, update and weight where it TRACKS them. Where it
    MEASURES, it writes nothing, and returns those of what the RULE measures and of the weight, each
    in two.
    """
    place = (start, (end - start).to(tl.int32), elements(LANES, STORED))
    p = opened(streams[0], place, stored_as(STORED, 0), COMPUTE, VECTOR, PATH)
    g = opened(streams[1], place, None, COMPUTE, VECTOR, PATH)
    states = ()
    for k in tl.static_range(2, 2 + STATES):
        state = opened(streams[k], place, stored_as(STORED, k), COMPUTE, VECTOR, PATH)
        states = states + (state,)  # noqa: RUF005
    if SCALER == UNSCALES:
        g = divide(g, scale.to(COMPUTE))
        if not CLEARS and not MEASURES:
            # Written back, as after GradScaler.unscale_: a later pass finds true gradients.
            closed(g, (), streams[1], place, None, VECTOR, PATH)
    before = p
    given = prepared(g, p, sign, passes) if PREPARES else g * sign
    squares = ()
    if MEASURES:
        mask = place[2] < place[1]
        measured = RULE(p, given, states, scalars, VARIANT)
        squares = square_sums(measured, mask) + square_sums(p, mask)
    else:
        p, states = RULE(p, given, states, scalars, VARIANT)
        random = ()
        for k in tl.static_range(len(keys)):
            random = random + (words(keys[k], start, place[2]),)  # noqa: RUF005
        planes = closed(p, random, streams[0], place, stored_as(STORED, 0), VECTOR, PATH)
        for k in tl.static_range(2, 2 + STATES):
            closed(states[k - 2], random, streams[k], place, stored_as(STORED, k), VECTOR, PATH)
        if AVERAGES or TRACKS:
            p = decode(planes, stored_as(STORED, 0), COMPUTE)  # as it was stored
        if AVERAGES:
            of = streams[2 + STATES]
            FORMAT: tl.constexpr = stored_as(STORED, 2 + STATES)
            average = opened(of, place, FORMAT, COMPUTE, VECTOR, PATH)
            average = tl.where(passes[4] != 0, p, lerp(average, p, passes[3]))
            closed(average, random, of, place, FORMAT, VECTOR, PATH)
        if CLEARS:
            closed(tl.zeros_like(g), (), streams[1], place, None, VECTOR, PATH)
        if TRACKS:
            mask = place[2] < place[1]
            squares = (square_sum(g, mask), square_sum(p - before, mask), square_sum(p, mask))
    return squares


@triton.jit
def numbers_of(group, numbers, factors, COMPUTE: tl.constexpr):
    numbers += group * 4
    limit = tl.load(numbers + 1).to(COMPUTE)
    l1 = tl.load(numbers + 2).to(COMPUTE)
    return tl.load(factors + group).to(COMPUTE), limit, l1, tl.load(numbers + 3).to(COMPUTE)


@triton.jit
def clear(at, start, end, LANES: tl.constexpr):
    offsets = tl.arange(0, LANES)
    while start < end:
        zeros = narrow(tl.zeros([LANES], tl.float32), at.dtype.element_ty)
        tl.store(at + start + offsets, zeros, mask=start + offsets < end)
        start += LANES


@triton.jit(do_not_specialize_on_alignment=TABLES)
def multi_tensor(
    blocks, rows, grads, scalars, keys, found_inf, grad_scale, groups, numbers, factors, begins,
    sums,
    RULE: tl.constexpr, VARIANT: tl.constexpr, STATES: tl.constexpr, SCALARS: tl.constexpr,
    DTYPES: tl.constexpr, STORED: tl.constexpr, COMPUTE: tl.constexpr, SCALER: tl.constexpr,
    PREPARES: tl.constexpr, AVERAGES: tl.constexpr, CLEARS: tl.constexpr, TRACKS: tl.constexpr,
    MEASURES: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, SINGLES: tl.constexpr,
):  # fmt: skip
    """Update one block of one tensor; or, where it MEASURES, sum up what its update waits for.

    blocks: tensor << 32 | number of the block in its tensor, one a program.
    rows: [n, param, states..., average] a tensor, where it is compact then their second planes or
    0; grads: its gradient's address, 0 where it has none.
    scalars: [sign, the rule's scalars...] a tensor; sign is -1 to maximize. keys: [WORDS] a tensor.
    DTYPES: of param, gradient, states, average; STORED: what is more than these, see
    formats.decode, or None. VECTOR: elements an access, 16 bytes of the widest; SINGLES: threads,
    each of which takes one element of a remainder.
    Of the passes, None where there is none of them: groups, the group of each tensor; numbers and
    factors, see passes.Passes, a group; begins, 1 where a tensor's average has never been written
    (None: all have been); sums, three a program where it TRACKS, four where it MEASURES.
    """
    entry = tl.load(blocks + tl.program_id(0))
    tensor = entry >> 32
    offset = (entry & 0xFFFFFFFF) * BLOCK
    FIRSTS: tl.constexpr = 1 + STATES + AVERAGES
    row = rows + tensor * (1 + FIRSTS if STORED is None else 1 + 2 * FIRSTS)
    grad = tl.load(grads + tensor)
    n = tl.where(grad == 0, 0, tl.load(row))
    grad_at = grad.to(tl.pointer_type(DTYPES[1]))
    scale = 1.0
    if SCALER >= SKIPS:
        skipped = tl.load(found_inf) != 0
        if CLEARS:  # noqa: SIM102 - a constant, then a number on the device
            if skipped:
                clear(grad_at, offset, tl.minimum(offset + BLOCK, n), SINGLES)
        n = tl.where(skipped, 0, n)
    if SCALER == UNSCALES:
        scale = tl.load(grad_scale)
    streams, bits = (), grad
    for k in tl.static_range(1 + FIRSTS):
        address = grad if k == 1 else tl.load(row + (1 if k == 0 else k))
        bits = bits | address
        second = address  # of which nothing is read where there is no other plane
        if second_plane(stored_as(STORED, k)) is not None:
            second = tl.load(row + FIRSTS + (1 if k == 0 else k))
            if second_plane(stored_as(STORED, k)) != tl.uint8:  # scales are single bytes
                bits = bits | second
        streams = streams + ((address.to(tl.pointer_type(DTYPES[k])), second),)  # noqa: RUF005
    noise_keys = ()
    for k in tl.static_range(words_used(STORED)):
        key = tl.load(keys + tensor * WORDS + k)
        noise_keys = noise_keys + (key.to(tl.uint64, bitcast=True),)  # noqa: RUF005
    scalar_row = scalars + tensor * (1 + SCALARS)
    sign = tl.load(scalar_row).to(COMPUTE)
    values = ()
    for k in tl.static_range(SCALARS):
        values = values + (tl.load(scalar_row + 1 + k).to(COMPUTE),)  # noqa: RUF005
    passes = ()
    if PREPARES or AVERAGES:
        passes = numbers_of(tl.load(groups + tensor), numbers, factors, COMPUTE)
        if AVERAGES and begins is not None:
            passes = passes + (tl.load(begins + tensor),)  # noqa: RUF005
        else:
            passes = passes + (0,)  # noqa: RUF005
    # Whole vectors of 16 bytes, where all pointers are multiples of that; then one by one.
    vectors = tl.multiple_of(tl.where(bits % 16 == 0, n - n % VECTOR, 0), VECTOR)
    offset = tl.multiple_of(offset, BLOCK)
    end = tl.minimum(offset + BLOCK, n)
    SUMS: tl.constexpr = 4 if MEASURES else 3 if TRACKS else 0
    total = ()
    for _ in tl.static_range(SUMS):
        total = total + (tl.load(scalar_row).to(tl.float64) * 0,)  # noqa: RUF005
    if offset + BLOCK <= vectors:
        squares = update(
            offset, vectors, streams, noise_keys, values, sign, scale, passes,
            RULE, VARIANT, STATES, COMPUTE, STORED, SCALER, PREPARES, AVERAGES, CLEARS, TRACKS,
            MEASURES, VECTOR, BLOCK, FULL,
        )  # fmt: skip
        if SUMS > 0:
            total = squares
    else:
        start = offset
        # Programs in compact formats are too small for a tail to be worth another copy of the code,
        # which took 126 registers in place of 97 (AdamW in 8 bits, sm_90).
        if STORED is None:
            if offset < vectors:
                squares = update(
                    offset, vectors, streams, noise_keys, values, sign, scale, passes,
                    RULE, VARIANT, STATES, COMPUTE, STORED, SCALER, PREPARES, AVERAGES, CLEARS,
                    TRACKS, MEASURES, VECTOR, BLOCK, VECTORS,
                )  # fmt: skip
                if SUMS > 0:
                    total = squares
            start = tl.maximum(offset, vectors)
        # In a loop, as it is rare: unrolled, it would set the registers of the paths above.
        while start < end:
            squares = update(
                start, end, streams, noise_keys, values, sign, scale, passes,
                RULE, VARIANT, STATES, COMPUTE, STORED, SCALER, PREPARES, AVERAGES, CLEARS, TRACKS,
                MEASURES, VECTOR, SINGLES, ANY,
            )  # fmt: skip
            if SUMS > 0:
                total = added(total, squares, MEASURES)
            start += SINGLES
    for k in tl.static_range(SUMS):
        tl.store(sums + tl.program_id(0) * SUMS + k, total[k])


@triton.jit(do_not_specialize_on_alignment=["ends", "sums", "scalars"])
def complete_scalars(
    ends, sums, scalars,
    COMPLETED: tl.constexpr, SCALARS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Complete the scalars of one tensor by its norms, in double, where they stand.

    ends: the number of programs up to every tensor; sums: theirs, as `multi_tensor` MEASURES them.
    """
    tensor = tl.program_id(0)
    end = tl.load(ends + tensor)
    start = tl.where(tensor == 0, 0, tl.load(ends + tl.maximum(tensor - 1, 0)))
    norms = ()
    for which in tl.static_range(2):
        high, low = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        at = start
        while at < end:
            place = at + tl.arange(0, BLOCK)
            of = sums + place * 4 + 2 * which
            more = tl.load(of, mask=place < end, other=0)
            high, low = two_sum(high, low, more, tl.load(of + 1, mask=place < end, other=0))
            at += BLOCK
        high, more = twice_summed(high)
        low = total_of(low) + more
        # Of what is infinite, the other part is NaN.
        norms = norms + (tl.sqrt(tl.where(low - low == 0, high + low, high)),)  # noqa: RUF005
    row = scalars + tensor * (1 + SCALARS) + 1
    values = ()
    for k in tl.static_range(SCALARS):
        values = values + (tl.load(row + k),)  # noqa: RUF005
    values = COMPLETED(norms[1], norms[0], values)
    for k in tl.static_range(SCALARS):
        tl.store(row + k, values[k])


@triton.jit
def is_wide(address):
    # float32 or float64: told apart by the lowest bit, which no such address has.
    return (address & 1) == 1


@triton.jit
def load_number(address, mask):
    wide = is_wide(address)
    address = address & -2
    narrow_at = address.to(tl.pointer_type(tl.float32))
    wide_at = address.to(tl.pointer_type(tl.float64))
    as_float = tl.load(narrow_at, mask=mask & ~wide, other=0).to(tl.float64)
    return tl.where(wide, tl.load(wide_at, mask=mask & wide, other=0), as_float)


@triton.jit
def store_number(address, number, mask):
    wide = is_wide(address)
    address = address & -2
    narrow_at = address.to(tl.pointer_type(tl.float32))
    tl.store(narrow_at, number.to(tl.float32), mask=mask & ~wide)
    tl.store(address.to(tl.pointer_type(tl.float64)), number, mask=mask & wide)


@triton.jit(do_not_specialize=["tensors"], do_not_specialize_on_alignment=COUNTS_OF)
def count_steps(
    tensors, grads, carried, groups, fresh, hyper, hyper_at, scalars, found_inf, unwritten, begins,
    places, seeds, keys,
    SCALARS_OF: tl.constexpr, HYPER: tl.constexpr, CARRIED: tl.constexpr, SCALER: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Count the steps of `tensors` tensors and write their rows of scalars, all in double.

    carried: addresses of the CARRIED numbers of each, its step first, which are advanced. fresh: 1
    where the states have never been written; groups: which group each is in. hyper: [sign,
    hyperparameters...] a group; hyper_at: the address of each one that is a tensor on the device,
    else 0. A skipped or absent update counts nothing.
    unwritten: 1 where the average has never been written, then this step's copy of it; or None.
    places: of each parameter over all groups, seeds: of each group, and the keys of the noise that
    are made of them and the step; or None.
    """
    tensor = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = tensor < tensors
    end = tensors
    if SCALER >= SKIPS:
        end = tl.where(tl.load(found_inf) != 0, 0, tensors)
    live = (tensor < end) & (tl.load(grads + tensor, mask=mask, other=0) != 0)
    step = tl.zeros([BLOCK], tl.float64)
    addresses, more = (), ()
    for k in tl.static_range(CARRIED):
        address = tl.load(carried + tensor * CARRIED + k, mask=mask, other=0)
        number = load_number(address, live)
        addresses = addresses + (address,)  # noqa: RUF005
        if k == 0:
            step = rounded(number + 1, is_wide(address))
        else:
            more = more + ((number, is_wide(address)),)  # noqa: RUF005
    first = tl.load(fresh + tensor, mask=mask, other=0)
    tl.store(fresh + tensor, tl.zeros_like(first), mask=live)
    if unwritten is not None:
        begin = tl.load(unwritten + tensor, mask=mask, other=0)
        tl.store(begins + tensor, begin, mask=mask)
        tl.store(unwritten + tensor, tl.zeros_like(begin), mask=live)
    group = tl.load(groups + tensor, mask=mask, other=0).to(tl.int64)
    if keys is not None:
        seed = tl.load(seeds + group, mask=mask, other=0) ^ step.to(tl.int64)
        seed = mix64(seed.to(tl.uint64, bitcast=True)).to(tl.int64, bitcast=True)
        place = tl.load(places + tensor, mask=mask, other=0)
        for k in tl.static_range(WORDS):
            key = mix64((seed ^ (place + (k << 32))).to(tl.uint64, bitcast=True))
            tl.store(keys + tensor * WORDS + k, key.to(tl.int64, bitcast=True), mask=mask)
    group = group * (1 + HYPER)
    numbers = ()
    for k in tl.static_range(HYPER):
        given = tl.load(hyper + group + 1 + k, mask=mask, other=0)
        at = tl.load(hyper_at + group + 1 + k, mask=mask, other=0)
        numbers = numbers + (tl.where(at == 0, given, load_number(at, mask & (at != 0))),)  # noqa: RUF005
    # Of a rule that carries more than its step, what the other numbers become comes first.
    if CARRIED > 1:
        advanced, values = SCALARS_OF(numbers, step, first.to(tl.float64), more)
    else:
        advanced, values = (), SCALARS_OF(numbers, step, first.to(tl.float64))
    for k in tl.static_range(CARRIED):
        store_number(addresses[k], step if k == 0 else advanced[k - 1], live)
    out = scalars + tensor * (1 + len(values))
    tl.store(out, tl.load(hyper + group, mask=mask, other=0), mask=mask)
    for k in tl.static_range(len(values)):
        tl.store(out + 1 + k, values[k] + tl.zeros([BLOCK], tl.float64), mask=mask)
