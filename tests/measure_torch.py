"""How far torch's own steps on this machine are from fastopt's: `python tests/measure_torch.py`.

The numbers of the table in docs/numerics.md: the share of a million parameters that differ after 5
steps, and the largest difference, in eps of the larger of the parameter and 1; the same of torch's
square root, in units of its last place. For each ATEN_CPU_CAPABILITY that this processor can run,
in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import torch
from support import differing, parameter, values

import fastopt

SIZE = 2**20
STEPS = 5
PATHS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("SGD", "for-loop", {"momentum": 0.9, "weight_decay": 1e-4}, {"foreach": False}),
    ("Adam", "for-loop", {}, {"foreach": False}),
    ("Adam", "fused", {}, {"fused": True}),
    ("RMSprop", "for-loop", {}, {"foreach": False}),
]


def distance(a: torch.Tensor, b: torch.Tensor, unit: torch.Tensor) -> str:
    share = 100 * differing(a, b) / a.numel()
    return f"{share:.2g} %, {((a - b).abs() / unit).max().item():.2g}"


def after_steps(name: str, hyper: dict[str, Any], path: dict[str, Any], dtype: torch.dtype) -> str:
    p = parameter((SIZE,), dtype, seed=0)
    q = torch.nn.Parameter(p.detach().clone())
    ours = getattr(fastopt, name)([p], **hyper)
    theirs = getattr(torch.optim, name)([q], **hyper, **path)
    for k in range(STEPS):
        p.grad = q.grad = values(p.shape, dtype, seed=k + 1)
        ours.step()
        theirs.step()
    return distance(p, q, torch.finfo(dtype).eps * p.abs().clamp(min=1))


def measure() -> None:
    for dtype in (torch.float32, torch.float64):
        where = f"{torch.backends.cpu.get_cpu_capability()}, {dtype}"
        x = values((SIZE,), dtype, seed=0).abs()
        root = np.sqrt(x.numpy())
        last_place = torch.from_numpy(np.spacing(root))
        print(f"{where}: sqrt: {distance(x.sqrt(), torch.from_numpy(root), last_place)}")
        for name, path, hyper, arguments in PATHS:
            print(f"{where}: {name}, {path}: {after_steps(name, hyper, arguments, dtype)}")


if __name__ == "__main__":
    if sys.argv[1:] == ["here"]:
        measure()
    else:
        known, best = ["default", "avx2", "avx512"], torch.backends.cpu.get_cpu_capability().lower()
        for capability in known[: known.index(best) + 1] if best in known else [best]:
            environment = os.environ | {"ATEN_CPU_CAPABILITY": capability}
            subprocess.run([sys.executable, __file__, "here"], env=environment, check=True)
