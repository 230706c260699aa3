"""What torch computes on every machine, where its own last bits depend on the machine.

Two things do: MKL's square root, one unit off in some numbers, other ones on each processor; and
kernels built without AVX2, which round a product before they add it. The rest of a for-loop step is
`+ - * /`, where IEEE 754 leaves no choice.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from support import differing, values
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastopt.rules.arithmetic import Arithmetic, Array

aten = torch.ops.aten


def add(a: Arithmetic, x: Array, y: Array | float, *, alpha: float = 1) -> Array:
    return a.fma(a.array(alpha), a.array(y), x)


def addcmul(a: Arithmetic, x: Array, y: Array, z: Array, *, value: float = 1) -> Array:
    return a.fma(a.array(value) * y, z, x)


def lerp(a: Arithmetic, x: Array, y: Array, weight: float) -> Array:
    return a.lerp(x, y, weight)


def sqrt(a: Arithmetic, x: Array) -> Array:
    return np.asarray(np.sqrt(x))


def vector_norm(a: Arithmetic, x: Array, *_: Any, dtype: torch.dtype | None = None) -> Array:
    return np.asarray(a.norm(x))


ROUNDED: dict[Any, Callable[..., Array]] = {
    aten.add.Tensor: add,
    aten.add_.Tensor: add,
    aten.addcmul.default: addcmul,
    aten.addcmul_.default: addcmul,
    aten.lerp.Scalar: lerp,
    aten.linalg_vector_norm.default: vector_norm,
    aten.lerp_.Scalar: lerp,
    aten.sqrt.default: sqrt,
    aten.sqrt_.default: sqrt,
}


class RoundedOnce(TorchDispatchMode):
    """Inside, a sum with a product is one fused multiply-add and a square root the nearest number.

    torch runs every operation itself, in its order and into its own layouts; then the numbers that
    these few gave, in float32 and float64, become NumPy's. `replaced` counts those that changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        rounded = ROUNDED.get(func)
        if rounded is None or args[0].dtype not in (torch.float32, torch.float64):
            return func(*args, **kwargs)
        a = Arithmetic(str(args[0].dtype).removeprefix("torch."))
        arrays = [x.numpy(force=True) if isinstance(x, Tensor) else x for x in args]
        with np.errstate(all="ignore"):
            numbers = torch.from_numpy(rounded(a, *arrays, **kwargs))
        result = func(*args, **kwargs)
        self.replaced += differing(result, numbers)
        return result.copy_(numbers)


def torch_fuses() -> bool:
    """Whether torch's kernels here have fused multiply-adds: those for AVX2 and AVX-512 have."""
    watch = RoundedOnce()
    with watch:
        values((4096,), torch.float32, seed=0).add(values((4096,), torch.float32, 1), alpha=0.3)
    return watch.replaced == 0
