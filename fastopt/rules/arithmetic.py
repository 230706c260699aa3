"""Arithmetic with the engine's roundings: rounding to storage, fma, then one class of both.

NumPy's +, -, *, / and sqrt are correctly rounded, as the engine's are. What it lacks is here.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = "NDArray[Any]"


def round_to_bfloat16(x: Array) -> Array:
    """float32 values rounded to bfloat16 (nearest, ties to even), still as float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    rounded = (upper.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(np.shape(x))
    return np.asarray(np.where(np.isnan(x), np.float32(np.nan), rounded))


def round_to_float16(x: Array) -> Array:
    """float32 values rounded to float16 (nearest, ties to even), still as float32."""
    return x.astype(np.float16).astype(np.float32)


def fma_float32(a: Array, b: Array, c: Array) -> Array:
    """Compute a * b + c of float32, rounded once.

    The product of two float32 is exact in float64. The sum there is rounded to odd: where it is
    inexact, the neighbour with an odd last bit is taken. Rounding that to float32 is then the
    rounding of the exact sum (S. Boldo and G. Melquiond, "Emulation of a FMA and correctly rounded
    sums: proved algorithms using rounding to odd", 2008).
    """
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    c = np.asarray(c, np.float64)
    total = product + c
    back = total - product
    lost = (product - (total - back)) + (c - back)  # exactly what the addition rounded away
    even = (np.asarray(total).view(np.int64) & 1) == 0
    odd = np.nextafter(total, np.where(lost > 0, np.inf, -np.inf))
    return np.asarray(np.where(even & (lost != 0) & np.isfinite(lost), odd, total), np.float32)


@functools.cache
def _libm_fma() -> Callable[..., Any]:
    fma = ctypes.CDLL(ctypes.util.find_library("m")).fma
    fma.argtypes = [ctypes.c_double] * 3
    fma.restype = ctypes.c_double
    return np.frompyfunc(fma, 3, 1)


def fma_float64(a: Array, b: Array, c: Array) -> Array:
    """Compute a * b + c of float64, rounded once: libm's, element by element."""
    return np.asarray(_libm_fma()(a, b, c), np.float64)


class Arithmetic:
    """What one storage type means: the type computed in, its fma, the rounding when stored."""

    def __init__(self, dtype: str) -> None:
        if dtype not in ("float32", "float64", "bfloat16", "float16", "exact"):
            raise ValueError(
                f"dtype is {dtype!r}; allowed: float32, float64, bfloat16, float16, exact"
            )
        self.dtype = dtype
        self.exact = dtype == "exact"
        self.type: Any = {"float64": np.float64, "exact": np.longdouble}.get(dtype, np.float32)

    def number(self, x: Any) -> Any:
        """A hyperparameter on the host: a double, in which all of its arithmetic is done."""
        return self.type(x) if self.exact else float(x)

    def norm(self, x: Array) -> Any:
        """The L2 norm in double, of a sum of squares that is rounded once."""
        squares = np.ravel(self.array(x) if self.exact else x.astype(np.float64)) ** 2
        if self.exact or not np.isfinite(squares).all():
            return np.sqrt(np.sum(squares))
        try:
            return math.sqrt(math.fsum(squares))
        except OverflowError:
            return math.inf

    def array(self, x: ArrayLike) -> Array:
        """A tensor's values, or a scalar's, in the type computed in."""
        return np.asarray(x, self.type)

    def zeros(self, p: Array) -> Array:
        return np.zeros(np.shape(p), self.type)

    def gradient(self, g: ArrayLike, maximize: bool, grad_scale: float | None) -> Array:
        """What every rule does first: undo the gradient scaler's factor, then maximize's sign."""
        unscaled = self.array(g)
        if grad_scale is not None:
            unscaled = unscaled / self.array(grad_scale)
        return -unscaled if maximize else unscaled

    def fma(self, a: Array, b: Array, c: Array) -> Array:
        if self.exact:
            return np.asarray(a * b + c)
        return (fma_float64 if self.type is np.float64 else fma_float32)(a, b, c)

    def lerp(self, start: Array, end: Array, weight: Any) -> Array:
        """Compute start + weight * (end - start), from the nearer end as torch.lerp does."""
        w = self.array(weight)
        if w < 0.5:
            return self.fma(w, end - start, start)
        return self.fma(w - self.array(1), end - start, end)

    def store(self, x: Array) -> Array:
        """What is left of a value once it has been written to a tensor."""
        if self.dtype == "bfloat16":
            return round_to_bfloat16(x)
        return round_to_float16(x) if self.dtype == "float16" else np.asarray(x)
