"""Several processes of one thread over gloo, for tests: a function in each; what one raises fails
the test, and so does a hang.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

TIMEOUT = 240  # seconds, on machines that do much else


def _main(
    rank: int, world: int, store: str, errors: Any, call: Callable[..., None], args: Any
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=TIMEOUT / 4),
        )
        call(*args)
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        errors.put(f"rank {rank}:\n{traceback.format_exc()}")
        raise


def run(world: int, call: Callable[..., None], *args: Any) -> None:
    """`call(*args)` in `world` processes, with a default process group."""
    context = mp.get_context("spawn")
    errors = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = os.path.join(folder, "store")
        workers = [
            context.Process(target=_main, args=(rank, world, store, errors, call, args))
            for rank in range(world)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(TIMEOUT)
        hung = [rank for rank, worker in enumerate(workers) if worker.is_alive()]
        for worker in workers:
            worker.kill()
            worker.join()
        found = [] if errors.empty() else [errors.get()]
        codes = [worker.exitcode for worker in workers]
    assert not found, found[0]
    assert not hung, f"ranks {hung} hang"
    assert codes == [0] * world


@cache  # each makes process groups, which takes longer than a step
def mesh_of(*shape: int, names: tuple[str, ...] | None = None) -> DeviceMesh:
    """A mesh of all the processes, made once in each of them."""
    return init_device_mesh("cpu", shape, mesh_dim_names=names)
