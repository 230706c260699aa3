"""A rule that Triton cannot compile; in a file of its own, as Triton reads its source."""

import triton
import triton.language as tl


@triton.jit
def broken(p, g, states, scalars, VARIANT: tl.constexpr):
    return nowhere_defined(p), states  # noqa: F821
