"""Threads: two optimizers step at once, each with a team of its own. `make sanitize` runs this
under ThreadSanitizer.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from support import Optimizer, parameter, values

import fastopt

# More than a team's threads need to be woken: see kMinShare in csrc/batch.cpp.
SHAPES = [(70_001,), (300, 200), (17,), (129, 513)]


def train(optimizer: Optimizer, arguments: dict[str, Any], seed: int) -> list[torch.Tensor]:
    torch.set_num_threads(2)  # OpenMP counts for each thread that starts a team
    params = [parameter(shape, torch.float32, seed=seed + i) for i, shape in enumerate(SHAPES)]
    ours = optimizer.ours(params, **arguments)
    for step in range(5):
        for i, p in enumerate(params):
            p.grad = values(p.shape, p.dtype, seed=seed + step + i)
        ours.step()
        ours.zero_grad()
    return params


@pytest.mark.parametrize(
    "passes",
    [{}, {"max_grad_norm": 1.0, "track_stats": True}, {"clear_grads": True, "ema_decay": 0.9}],
    ids=str,
)
def test_optimizers_in_two_threads(optimizer: Optimizer, passes: dict[str, Any]) -> None:
    """Disjoint tensors, at the same time: the bits of one after the other."""
    arguments = {**optimizer.strongest, **passes}
    seeds = (0, 1000)
    alone = [train(optimizer, arguments, seed) for seed in seeds]
    made: dict[int, list[torch.Tensor]] = {}
    start = threading.Barrier(len(seeds))

    def work(seed: int) -> None:
        start.wait()
        made[seed] = train(optimizer, arguments, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for seed, expected in zip(seeds, alone, strict=True):
        for ours, theirs in zip(made[seed], expected, strict=True):
            assert torch.equal(ours, theirs)


def test_stepping_while_another_thread_computes() -> None:
    """The core shares its threads with torch: neither step nor product disturbs the other."""
    stop = threading.Event()
    a = torch.randn(256, 256)
    expected = a @ a
    wrong = []

    def multiply() -> None:
        while not stop.is_set():
            if not torch.equal(a @ a, expected):
                wrong.append(1)

    beside = threading.Thread(target=multiply)
    beside.start()
    try:
        p = parameter((200_000,), torch.float32, seed=0)
        ours = fastopt.Adam([p])
        for step in range(20):
            p.grad = values(p.shape, p.dtype, seed=step)
            ours.step()
    finally:
        stop.set()
        beside.join()
    assert not wrong
