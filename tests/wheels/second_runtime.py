"""Beside a second OpenMP runtime, loaded first: the core takes torch's threads, with the same bits.

Run by the interpreter of an environment that has fastopt's wheel and scikit-learn's, whose libgomp
is its own. Prints what was found.
"""

from __future__ import annotations

from pathlib import Path

from sklearn.cluster import KMeans  # its runtime; below, its threads

# isort: split
import torch

import fastopt
from fastopt import openmp


def trained(threads: int) -> list[torch.nn.Parameter]:
    """Parameters after some steps, the other runtime's threads at work between them."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(300_001)) for _ in range(4)]
    optimizer = fastopt.AdamW(params, lr=0.1, max_grad_norm=1.0)
    points = torch.randn(5000, 3).numpy()
    for _ in range(5):
        for param in params:
            param.grad = torch.randn(300_001)
        optimizer.step()
        KMeans(8, n_init=1, random_state=0).fit(points)
    return params


many = max(4, torch.get_num_threads())
same = all(map(torch.equal, trained(1), trained(many)))
runtimes = openmp.loaded()
cores, torchs = (
    openmp.used_by(file)
    for file in (
        fastopt._core.__file__,
        str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"),
    )
)
assert same, "threads changed the bits"
assert len(runtimes) == 2, runtimes
assert cores == torchs, (cores, torchs)
assert "torch/lib" in cores, cores
print(f"{len(runtimes)} OpenMP runtimes, torch's used")
