"""The rules on the GPU: exact arithmetic, one update a rule, scalars on the device, the registry.

An update is the maths of `csrc/rules/<rule>.h` with the same roundings: `tl.fma` where that file
has fma, and nothing fused anywhere else (`enable_fp_fusion=False` at every launch). Its scalars
come in the order of that file's `scalar_names`. Options that switch a term are selections, so that
one compiled kernel serves them all; options that add a stream are the VARIANT, numbered as there.

A new rule is one update function and one line in RULES. Its `scalars` function is needed only for
`capturable=True` and GradScaler, where no host knows the step. Of a rule whose parameters carry
other numbers too, it is given these, each with whether it is float64, and returns what they become
before the scalars.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
def sgd(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, lr, momentum, grad_weight, weight_decay, nesterov, first = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    if VARIANT == 1:
        buffer = tl.where(first != 0, g, tl.fma(grad_weight, g, momentum * states[0]))
        g = tl.where(nesterov != 0, tl.fma(momentum, buffer, g), buffer)
        states = (buffer,)
    return tl.fma(-lr, g, p), states


@triton.jit
def adam(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        weight_decay,
        lerp_weight,
        beta2,
        square_weight,
        correction,
        step_size,
        eps,
        eps_in_sqrt,
    ) = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    if VARIANT == 1:
        square = maximum(states[2], exp_avg_sq)
        states = (exp_avg, exp_avg_sq, square)
    else:
        square = exp_avg_sq
        states = (exp_avg, exp_avg_sq)
    denom = divide(root(square + eps_in_sqrt), correction) + eps
    return p - divide(step_size * exp_avg, denom), states


@triton.jit
def rmsprop(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, lr, alpha, square_weight, eps, eps_in_sqrt, weight_decay, momentum = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    square_avg = tl.fma(square_weight * g, g, alpha * states[0])
    if VARIANT >= 2:  # centered
        grad_avg = lerp(states[VARIANT - 1], g, square_weight)
        denom = root(tl.fma(-grad_avg, grad_avg, square_avg) + eps_in_sqrt) + eps
    else:
        denom = root(square_avg + eps_in_sqrt) + eps
    if VARIANT % 2 == 1:  # momentum
        buffer = momentum * states[1] + divide(g, denom)
        p = tl.fma(-lr, buffer, p)
        states = (square_avg, buffer)
    else:
        p = p - divide(lr * g, denom)
        states = (square_avg,)
    if VARIANT >= 2:
        states = states + (grad_avg,)  # noqa: RUF005
    return p, states


@triton.jit
def adagrad(p, g, states, scalars, VARIANT: tl.constexpr):
    lr, weight_decay, eps = scalars
    g = decayed(g, p, weight_decay)
    square_sum = tl.fma(g, g, states[0])
    return p - divide(lr * g, root(square_sum) + eps), (square_sum,)


@triton.jit
def lion(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, lr, beta1, update_weight, beta2, grad_weight = scalars
    update = tl.fma(update_weight, g, beta1 * states[0])
    p = p * decay - tl.where(update > 0, lr, tl.where(update < 0, -lr, 0.0))
    return p, (tl.fma(grad_weight, g, beta2 * states[0]),)


@triton.jit
def nadam(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        weight_decay,
        lerp_weight,
        beta2,
        square_weight,
        correction,
        grad_size,
        avg_size,
        eps,
    ) = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    denom = root(divide(exp_avg_sq, correction)) + eps
    p = p - divide(grad_size * g, denom)
    return p - divide(avg_size * exp_avg, denom), (exp_avg, exp_avg_sq)


@triton.jit
def adamax(p, g, states, scalars, VARIANT: tl.constexpr):
    weight_decay, lerp_weight, beta2, eps, step_size = scalars
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_inf = maximum(beta2 * states[1], tl.abs(g) + eps)
    return p - divide(step_size * exp_avg, exp_inf), (exp_avg, exp_inf)


@triton.jit
def radam(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        weight_decay,
        lerp_weight,
        beta2,
        square_weight,
        correction1,
        lr,
        correction2_root,
        rectification,
        eps,
    ) = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    # Selected before they meet the average: of both updates at once, sm_100 spilled 8 bytes.
    rate = divide(tl.full(g.shape, 1.0, g.dtype), root(exp_avg_sq) + eps) * correction2_root
    rate = tl.where(rectification != 0, rate, 1.0)
    rectification = tl.where(rectification != 0, rectification, 1.0)
    update = divide(exp_avg, correction1) * lr * rate * rectification
    return p - update, (exp_avg, exp_avg_sq)


@triton.jit
def adadelta(p, g, states, scalars, VARIANT: tl.constexpr):
    lr, rho, square_weight, eps, weight_decay = scalars
    g = decayed(g, p, weight_decay)
    square_avg = tl.fma(square_weight * g, g, rho * states[0])
    delta = divide(root(states[1] + eps), root(square_avg + eps)) * g
    acc_delta = tl.fma(square_weight * delta, delta, rho * states[1])
    return tl.fma(-lr, delta, p), (square_avg, acc_delta)


@triton.jit
def rprop(p, g, states, scalars, VARIANT: tl.constexpr):
    etaminus, etaplus, smallest, largest = scalars
    turn = g * states[0]
    size = states[1] * tl.where(turn > 0, etaplus, tl.where(turn < 0, etaminus, 1.0))
    size = tl.where(size < smallest, smallest, size)  # as torch.clamp: NaN stays NaN
    size = tl.where(size > largest, largest, size)
    g = tl.where(turn < 0, 0.0, g)
    return p - tl.where(g > 0, size, tl.where(g < 0, -size, 0.0)), (g, size)


@triton.jit
def asgd(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, eta, mu, weight_decay = scalars
    g = decayed(g, p, weight_decay)
    p = tl.fma(-eta, g, p * decay)
    return p, (tl.where(mu == 1, p, states[0] + (p - states[0]) * mu),)


@triton.jit
def lamb_moments(p, g, states, scalars):
    _lr, lerp_weight, beta2, square_weight, avg_scale, correction, eps, weight_decay, _ratio = (
        scalars
    )
    exp_avg = lerp(states[0], g, lerp_weight)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    denom = divide(root(exp_avg_sq), correction) + eps
    update = divide(avg_scale * exp_avg, denom)
    return decayed(update, p, weight_decay), (exp_avg, exp_avg_sq)


@triton.jit
def lamb(p, g, states, scalars, VARIANT: tl.constexpr):
    update, states = lamb_moments(p, g, states, scalars)
    return tl.fma(-scalars[0], scalars[8] * update, p), states


@triton.jit
def lamb_measured(p, g, states, scalars, VARIANT: tl.constexpr):
    update, states = lamb_moments(p, g, states, scalars)
    return update


@triton.jit
def lars(p, g, states, scalars, VARIANT: tl.constexpr):
    _lr, momentum, weight_decay, nesterov, _trust, _eps, _adapts, rate = scalars
    g = decayed(g, p, weight_decay)
    if VARIANT == 0:
        p = tl.fma(-rate, g, p)
    else:
        buffer = tl.fma(rate, g, momentum * states[0])
        p = p - tl.where(nesterov != 0, tl.fma(rate, g, momentum * buffer), buffer)
        states = (buffer,)
    return p, states


@triton.jit
def lars_measured(p, g, states, scalars, VARIANT: tl.constexpr):
    return g


@triton.jit
def adabelief(p, g, states, scalars, VARIANT: tl.constexpr):
    decay, weight_decay, lerp_weight, beta2, square_weight, correction, step_size, eps = scalars
    p = p * decay
    g = decayed(g, p, weight_decay)
    exp_avg = lerp(states[0], g, lerp_weight)
    rest = g - exp_avg
    exp_avg_var = tl.fma(square_weight * rest, rest, beta2 * states[1]) + eps
    if VARIANT == 1:
        square = maximum(states[2], exp_avg_var)
        states = (exp_avg, exp_avg_var, square)
    else:
        square = exp_avg_var
        states = (exp_avg, exp_avg_var)
    denom = divide(root(square), correction) + eps
    return p - divide(step_size * exp_avg, denom), states


@triton.jit
def ademamix(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        fast_weight,
        slow_weight,
        beta2,
        square_weight,
        correction,
        fast_size,
        slow_size,
        eps,
    ) = scalars
    fast = lerp(states[0], g, fast_weight)
    slow = lerp(states[1], g, slow_weight)
    mixed = tl.fma(slow_size, slow, fast_size * fast)
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[2])
    p = p * decay - divide(mixed, divide(root(exp_avg_sq), correction) + eps)
    return p, (fast, slow, exp_avg_sq)


@triton.jit
def adan(p, g, states, scalars, VARIANT: tl.constexpr):
    (
        decay,
        shrinkage,
        avg_weight,
        diff_weight,
        beta2,
        beta3,
        square_weight,
        correction,
        avg_size,
        diff_size,
        eps,
        first,
    ) = scalars
    diff = tl.where(first != 0, 0.0, g + states[3])
    exp_avg = lerp(states[0], g, avg_weight)
    exp_avg_diff = lerp(states[2], diff, diff_weight)
    ahead = tl.fma(beta2, diff, g)
    exp_avg_sq = tl.fma(square_weight * ahead, ahead, beta3 * states[1])
    denom = divide(root(exp_avg_sq), correction) + eps
    p = p * decay - divide(tl.fma(diff_size, exp_avg_diff, avg_size * exp_avg), denom)
    return p * shrinkage, (exp_avg, exp_avg_sq, exp_avg_diff, -g)


@triton.jit
def sgd_schedulefree(p, g, states, scalars, VARIANT: tl.constexpr):
    weight_decay, average_weight, step_size, lr = scalars
    g = decayed(g, p, weight_decay)
    p = tl.fma(step_size, g, lerp(p, states[0], average_weight))
    return p, (tl.fma(-lr, g, states[0]),)


@triton.jit
def adamw_schedulefree(p, g, states, scalars, VARIANT: tl.constexpr):
    weight_decay, beta2, square_weight, correction, eps, average_weight, step_size, lr = scalars
    exp_avg_sq = tl.fma(square_weight * g, g, beta2 * states[1])
    update = divide(g, divide(root(exp_avg_sq), correction) + eps)
    update = decayed(update, p, weight_decay)
    p = tl.fma(step_size, update, lerp(p, states[0], average_weight))
    return p, (tl.fma(-lr, update, states[0]), exp_avg_sq)


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
def rounded(x, wide):
    # As its tensor holds it: float32 stops counting at 2**24, in torch as here.
    return tl.where(wide, x, x.to(tl.float32).to(tl.float64))


@triton.jit
def decay_of(lr, weight_decay, decoupled):
    # What a decoupled decay multiplies the parameter by, and what is left for the gradient.
    decay = tl.where(decoupled != 0, 1 - lr * weight_decay, 1.0)
    return decay, tl.where(decoupled != 0, 0.0, weight_decay)


@triton.jit
def sgd_scalars(hyper, step, first):
    lr, momentum, dampening, weight_decay, nesterov, decoupled = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    return decay, lr, momentum, 1 - dampening, weight_decay, nesterov, first


@triton.jit
def adam_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, _amsgrad, decoupled, in_sqrt = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    bias_correction2 = 1 - power(beta2, step)
    step_size = lr / (1 - power(beta1, step))
    inside = tl.where(in_sqrt != 0, eps * bias_correction2, 0.0)
    eps = tl.where(in_sqrt != 0, 0.0, eps)
    root_of = tl.sqrt(bias_correction2)
    return decay, weight_decay, 1 - beta1, beta2, 1 - beta2, root_of, step_size, eps, inside


@triton.jit
def rmsprop_scalars(hyper, step, first):
    lr, alpha, eps, weight_decay, momentum, _centered, decoupled, in_sqrt = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    inside = tl.where(in_sqrt != 0, eps, 0.0)
    eps = tl.where(in_sqrt != 0, 0.0, eps)
    return decay, lr, alpha, 1 - alpha, eps, inside, weight_decay, momentum


@triton.jit
def adagrad_scalars(hyper, step, first):
    lr, lr_decay, weight_decay, _initial, eps = hyper
    return lr / (1 + (step - 1) * lr_decay), weight_decay, eps


@triton.jit
def adapts(weight_decay, always_adapt):
    return tl.where((weight_decay != 0) | (always_adapt != 0), 1.0, 0.0)


@triton.jit
def lamb_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, corrects, always_adapt = hyper
    avg_scale = tl.where(corrects != 0, 1 / (1 - power(beta1, step)), 1.0)
    correction = tl.where(corrects != 0, tl.sqrt(1 - power(beta2, step)), 1.0)
    sizes = (lr, 1 - beta1, beta2, 1 - beta2, avg_scale, correction, eps)
    return sizes + (weight_decay, adapts(weight_decay, always_adapt))  # noqa: RUF005


@triton.jit
def lamb_completed(weight_norm, norm, scalars):
    compares = (scalars[8] != 0) & (weight_norm > 0) & (norm > 0)
    return scalars[:8] + (tl.where(compares, weight_norm / norm, 1.0),)  # noqa: RUF005


@triton.jit
def lars_scalars(hyper, step, first):
    lr, momentum, weight_decay, nesterov, trust_coefficient, eps, always_adapt = hyper
    sizes = (lr, momentum, weight_decay, nesterov, trust_coefficient, eps)
    return sizes + (adapts(weight_decay, always_adapt), lr)  # noqa: RUF005


@triton.jit
def lars_completed(weight_norm, norm, scalars):
    lr, _momentum, weight_decay, _nesterov, trust_coefficient, eps, adapts, _rate = scalars
    ratio = trust_coefficient * weight_norm / (norm + weight_decay * weight_norm + eps)
    compares = (adapts != 0) & (weight_norm > 0) & (norm > 0)
    return scalars[:7] + (lr * tl.where(compares, ratio, 1.0),)  # noqa: RUF005


@triton.jit
def lion_scalars(hyper, step, first):
    lr, beta1, beta2, weight_decay = hyper
    return 1 - lr * weight_decay, lr, beta1, 1 - beta1, beta2, 1 - beta2


@triton.jit
def nadam_momentum(beta1, momentum_decay, step):
    # 0.96**x by its logarithm: x is no integer.
    return beta1 * (1 - 0.5 * tl.exp(step * momentum_decay * -0.040821994520255166))


@triton.jit
def nadam_scalars(hyper, step, first, more):
    lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled = hyper
    mu_product, wide = more[0]
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    mu = nadam_momentum(beta1, momentum_decay, step)
    mu_next = nadam_momentum(beta1, momentum_decay, step + 1)
    mu_product = rounded(mu_product * rounded(mu, wide), wide)
    grad_size = lr * (1 - mu) / (1 - mu_product)
    avg_size = lr * mu_next / (1 - mu_product * mu_next)
    correction = 1 - power(beta2, step)
    sizes = (1 - beta1, beta2, 1 - beta2, correction, grad_size, avg_size, eps)
    return (mu_product,), (decay, weight_decay) + sizes  # noqa: RUF005


@triton.jit
def adamax_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay = hyper
    return weight_decay, 1 - beta1, beta2, eps, lr / (1 - power(beta1, step))


@triton.jit
def radam_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, decoupled = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    power2 = power(beta2, step)
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * power2 / (1 - power2)
    above = tl.where(rho > 5, (rho - 4) * (rho - 2) * rho_inf, 0.0)
    below = tl.where(rho > 5, (rho_inf - 4) * (rho_inf - 2) * rho, 1.0)
    sizes = (1 - beta1, beta2, 1 - beta2, 1 - power(beta1, step), lr)
    rates = (tl.sqrt(1 - power2), tl.sqrt(above / below), eps)
    return (decay, weight_decay) + sizes + rates  # noqa: RUF005


@triton.jit
def adadelta_scalars(hyper, step, first):
    lr, rho, eps, weight_decay = hyper
    return lr, rho, 1 - rho, eps, weight_decay


@triton.jit
def rprop_scalars(hyper, step, first):
    _lr, etaminus, etaplus, smallest, largest = hyper
    return etaminus, etaplus, smallest, largest


@triton.jit
def asgd_scalars(hyper, step, first, more):
    lr, lambd, alpha, t0, weight_decay = hyper
    eta, eta_wide = more[0]
    mu, mu_wide = more[1]
    # Those of the next step; a power by its logarithm, as in NAdam.
    next_eta = rounded(lr / tl.exp(alpha * tl.log(1 + lambd * lr * step)), eta_wide)
    next_mu = rounded(1 / tl.maximum(step - t0, 1.0), mu_wide)
    return (next_eta, next_mu), (1 - lambd * eta, eta, mu, weight_decay)


@triton.jit
def adabelief_scalars(hyper, step, first):
    lr, beta1, beta2, eps, weight_decay, _amsgrad, decoupled = hyper
    decay, weight_decay = decay_of(lr, weight_decay, decoupled)
    root_of, step_size = tl.sqrt(1 - power(beta2, step)), lr / (1 - power(beta1, step))
    return decay, weight_decay, 1 - beta1, beta2, 1 - beta2, root_of, step_size, eps


@triton.jit
def half_life(beta):
    return -0.6931471805599453 / tl.log(beta + 1e-8) - 1


@triton.jit
def ademamix_scalars(hyper, step, first):
    lr, beta1, beta2, beta3, alpha, eps, weight_decay, beta3_warmup, alpha_warmup = hyper
    part = tl.where(step < alpha_warmup, step / tl.maximum(alpha_warmup, 1.0), 1.0)
    along = tl.where(step < beta3_warmup, step / tl.maximum(beta3_warmup, 1.0), 0.0)
    half = (1 - along) * half_life(beta1) + along * half_life(beta3) + 1
    slow = tl.where(step < beta3_warmup, tl.exp(-0.6931471805599453 / half), beta3)
    root_of, fast_size = tl.sqrt(1 - power(beta2, step)), lr / (1 - power(beta1, step))
    sizes = (fast_size, lr * (part * alpha), eps)
    weights = (1 - beta1, 1 - slow, beta2, 1 - beta2, root_of)
    return (1 - lr * weight_decay,) + weights + sizes  # noqa: RUF005


@triton.jit
def adan_scalars(hyper, step, first):
    lr, beta1, beta2, beta3, eps, weight_decay, no_prox = hyper
    decay = tl.where(no_prox != 0, 1 - lr * weight_decay, 1.0)
    shrinkage = tl.where(no_prox != 0, 1.0, 1 / (1 + lr * weight_decay))
    weights = (1 - beta1, 1 - beta2, beta2, beta3, 1 - beta3, tl.sqrt(1 - power(beta3, step)))
    sizes = (lr / (1 - power(beta1, step)), lr * beta2 / (1 - power(beta2, step)), eps)
    return (decay, shrinkage) + weights + sizes + (tl.where(step == 1, 1.0, 0.0),)  # noqa: RUF005


@triton.jit
def power_of(base, exponent):
    # Of a base and an exponent that are not negative; the part behind the point by the logarithm.
    whole = tl.floor(exponent)
    rest = tl.exp((exponent - whole) * tl.log(tl.where(base > 0, base, 1.0)))
    found = power(base, whole) * tl.where(exponent == whole, 1.0, rest)
    return tl.where(base > 0, found, tl.where(exponent == 0, 1.0, 0.0))


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


@triton.jit
def sgd_schedulefree_scalars(hyper, step, first, more):
    lr, momentum, weight_decay, warmup_steps, r, weight_lr_power = hyper
    lr, part, carried = averaged(lr, warmup_steps, r, weight_lr_power, step, more)
    return carried, (weight_decay, part, lr * (momentum * (1 - part) - 1), lr)


@triton.jit
def adamw_schedulefree_scalars(hyper, step, first, more):
    lr, beta1, beta2, eps, weight_decay, warmup_steps, r, weight_lr_power = hyper
    lr, part, carried = averaged(lr, warmup_steps, r, weight_lr_power, step, more)
    squares = (beta2, 1 - beta2, tl.sqrt(1 - power(beta2, step)), eps)
    sizes = (part, lr * (beta1 * (1 - part) - 1), lr)
    return carried, (weight_decay,) + squares + sizes  # noqa: RUF005


class Rule(NamedTuple):
    """A rule's update and, to run without the host, its scalars; then, where its update waits for
    norms, what is measured, and what completes the scalars, in double: (norm of the parameter, norm
    of what was measured, scalars).
    """

    update: Any
    scalars: Any = None
    measured: Any = None
    completed: Any = None


RULES = {
    "adabelief": Rule(adabelief, adabelief_scalars),
    "adan": Rule(adan, adan_scalars),
    "ademamix": Rule(ademamix, ademamix_scalars),
    "adamw_schedulefree": Rule(adamw_schedulefree, adamw_schedulefree_scalars),
    "sgd_schedulefree": Rule(sgd_schedulefree, sgd_schedulefree_scalars),
    "adadelta": Rule(adadelta, adadelta_scalars),
    "adagrad": Rule(adagrad, adagrad_scalars),
    "asgd": Rule(asgd, asgd_scalars),
    "sgd": Rule(sgd, sgd_scalars),
    "adam": Rule(adam, adam_scalars),
    "adamax": Rule(adamax, adamax_scalars),
    "lamb": Rule(lamb, lamb_scalars, lamb_measured, lamb_completed),
    "lars": Rule(lars, lars_scalars, lars_measured, lars_completed),
    "lion": Rule(lion, lion_scalars),
    "nadam": Rule(nadam, nadam_scalars),
    "radam": Rule(radam, radam_scalars),
    "rmsprop": Rule(rmsprop, rmsprop_scalars),
    "rprop": Rule(rprop, rprop_scalars),
}
