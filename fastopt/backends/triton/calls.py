"""Calls of kernels: what one is, running them, compiling them before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import triton

from . import formats


class Call(NamedTuple):
    """One launch: a grid of `programs`; `constants` with the options of compilation."""

    function: Any
    programs: int
    arguments: list[Any]
    constants: dict[str, Any]


def options(backend: str, warps: int, registers: int | None = None) -> dict[str, Any]:
    """Of a launch: no multiplication and addition is fused but where the rule says so."""
    chosen: dict[str, Any] = {"num_warps": warps, "enable_fp_fusion": False}
    if registers is not None and backend == "cuda":  # Triton has no such option for AMD devices
        chosen["maxnreg"] = registers
    return chosen


def run(calls: Sequence[Call]) -> None:
    """Launch in the order of the current stream."""
    # The interpreter computes with NumPy, which warns of what IEEE 754 defines.
    with np.errstate(all="ignore") if formats.INTERPRETED.value else nullcontext():
        for function, programs, arguments, constants in calls:
            if programs:
                function[(programs,)](*arguments, **constants)


def compile_all(calls: Sequence[Call], of: str) -> str | None:
    """Compile and load them; why that cannot be done, with `of` naming whose kernels they are."""
    for function, _, arguments, constants in calls:
        try:
            # Asking for its launcher is what loads it: too large for this device shows here.
            function.warmup(*arguments, grid=(1,), **constants).run  # noqa: B018
        except Exception as error:
            cause: BaseException = error
            while cause.__cause__ is not None:  # the innermost of the functions inlined
                cause = cause.__cause__
            why = str(cause).strip().splitlines()[-1:]
            gpu = triton.runtime.driver.active.get_current_target()
            return (
                f"Triton {triton.__version__} cannot compile {function.__name__} of {of} for "
                f"{gpu.backend} {gpu.arch} ({type(cause).__name__}: {' '.join(why)}); set "
                "FASTOPT_BACKEND=torch to take torch's own step"
            )
    return None
