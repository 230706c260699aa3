"""What the rules on the GPU are written with: exact arithmetic, then scalars that several have."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def divide(x, y):
    # `/` is the approximate div.full.f32 in float32, and correctly rounded only in float64.
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def root(x):
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def maximum(a, b):
    # torch.maximum: a NaN on either side is the result.
    return tl.where((a > b) | (a != a), a, b)


@triton.jit
def lerp(start, end, weight):
    # torch.lerp starts from the nearer end, so that a weight of 1 gives it exactly.
    near_end = weight >= 0.5
    factor = tl.where(near_end, weight - 1, weight)
    return tl.fma(factor, end - start, tl.where(near_end, end, start))


@triton.jit
def decayed(g, p, weight_decay):
    # Selected, not multiplied by zero: an infinite parameter must not become a NaN gradient.
    return tl.where(weight_decay != 0, tl.fma(weight_decay, p, g), g)


@triton.jit
def product(a, b):
    # Of two numbers, each with what it lacks, as such a pair.
    high = a[0] * b[0]
    low = tl.fma(a[0], b[0], -high) + (a[0] * b[1] + a[1] * b[0])
    total = high + low
    return total, low - (total - high)


@triton.jit
def power(base, count):
    # By squaring, as no device has a correctly rounded pow, with twice the digits: rounded at each
    # multiplication, 0.98**3 was not the host's, and two of 77 parameters in float64 were not.
    result, square = (base * 0 + 1, base * 0), (base, base * 0)
    exponent = count.to(tl.int64)
    for _ in range(31):
        odd = (exponent & 1) == 1
        more = product(result, square)
        result = (tl.where(odd, more[0], result[0]), tl.where(odd, more[1], result[1]))
        exponent = exponent >> 1
        left = exponent > 0  # what is not used must not overflow either
        square = (tl.where(left, square[0], 1.0), tl.where(left, square[1], 0.0))
        square = product(square, square)
    return result[0]


@triton.jit
def power_of(base, exponent):
    # Of a base and an exponent that are not negative; the part behind the point by the logarithm.
    whole = tl.floor(exponent)
    rest = tl.exp((exponent - whole) * tl.log(tl.where(base > 0, base, 1.0)))
    found = power(base, whole) * tl.where(exponent == whole, 1.0, rest)
    return tl.where(base > 0, found, tl.where(exponent == 0, 1.0, 0.0))


@triton.jit
def rounded(x, wide):
    # As its tensor holds it: float32 stops counting at 2**24, in torch as here.
    return tl.where(wide, x, x.to(tl.float32).to(tl.float64))


@triton.jit
def decay_of(lr, weight_decay, decoupled):
    # What a decoupled decay multiplies the parameter by, and what is left for the gradient.
    decay = tl.where(decoupled != 0, 1 - lr * weight_decay, 1.0)
    return decay, tl.where(decoupled != 0, 0.0, weight_decay)


@triton.jit
def adapts(weight_decay, always_adapt):
    return tl.where((weight_decay != 0) | (always_adapt != 0), 1.0, 0.0)


@triton.jit
def averaged(lr, warmup_steps, r, weight_lr_power, step, more):
    # Of a step: its learning rate, the weight of its point in the average, what is carried on.
    lr_max, max_wide = more[0]
    weight_sum, sum_wide = more[1]
    lr = tl.where(step - 1 < warmup_steps, lr * (step / tl.maximum(warmup_steps, 1.0)), lr)
    lr_max = tl.maximum(lr_max, rounded(lr, max_wide))
    weight = power_of(step, r) * power_of(lr_max, weight_lr_power)
    weight = rounded(weight, sum_wide)
    weight_sum = rounded(weight_sum + weight, sum_wide)
    part = tl.where(weight_sum != 0, weight / tl.where(weight_sum != 0, weight_sum, 1.0), 0.0)
    return lr, part, (lr_max, weight_sum)
