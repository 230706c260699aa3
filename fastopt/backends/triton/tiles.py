"""How programs are cut: tile, target, constants; then what follows for streams of some sizes.

No constant was timed: the codegen check chose them, `python -m benchmarks tuning` races them.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import triton

from . import formats, norm
from .calls import options


class Tile(NamedTuple):
    """How a program works: warps, bytes a thread takes of a stream."""

    warps: int
    thread_bytes: int  # of the widest stream


class Target(NamedTuple):
    """What kernels are compiled for."""

    backend: str  # Triton's
    warp_size: int
    bytes_needed: float  # under way on a processor, to keep its share of the memory busy


# By the size of the widest element. Two 128-bit accesses a thread and stream halve the table
# look-ups, a chain of three dependent loads, that one would pay; four need registers for 32 lanes
# of 16 bits a stream. 4 warps are Triton's default, with exceptions: in float32 on sm_90, AMSGrad
# then spills 8 bytes a thread; 8 warps of 16-bit elements are too coarse for sm_100 (76 % of the
# bytes it needs under way).
TILES = {2: Tile(4, 32), 4: Tile(8, 32), 8: Tile(4, 32)}
COMPACT_TILES = {2: Tile(1, 32), 4: Tile(1, 32)}
# From the first byte asked for until it is there, under load: between 0.6 and 0.9 us are published
# for data-centre devices; not measured here.
LATENCY = 1e-6
# Part of the bytes that must be under way for compact kernels: Adam in bytes has some 110
# instructions an element, for which sm_100 takes longer than for the element's bytes, so that it
# reads at no more than half of its bandwidth.
COMPACT_PART = 0.6
# Of a processor, and of a thread at most: CUDA's. Left alone, ptxas spills a few to run more
# programs, by versions other ones.
REGISTERS, THREAD_REGISTERS = 65536, 255
# Threads that a processor has room for at least, so that they hide each other's look-ups. More
# would spill: of 384, which may have 168 registers, compact Adam did, that takes 192 to 238.
THREADS = 256
# Tensors a program of count_steps looks after; it is all latency, so any value near this will do.
COUNT_BLOCK = 128
COUNT_WARPS = 4
# Sums that a program of complete_scalars takes at a time, a number a thread of its one warp.
COMPLETE_BLOCK = 32
# Bytes of a gradient that a program of square_sums takes, of one warp: 16 accesses a thread, all
# under way at once, and no barrier.
NORM_BYTES = 8192
NORM_WARPS = 1


def lanes(itemsizes: Collection[int], warp_size: int, compact: bool = False) -> dict[str, int]:
    """The kernel's constants for streams of these sizes: BLOCK a program, VECTOR, SINGLES."""
    widest = max(itemsizes)
    tile = tile_for(itemsizes, compact)
    threads = tile.warps * warp_size
    return {
        "BLOCK": tile.thread_bytes // widest * threads,
        "VECTOR": 16 // widest,
        "SINGLES": max(threads, formats.BLOCK.value) if compact else threads,
    }


def bytes_needed(bandwidth: float, processors: int) -> float:
    """Bytes that a processor must have under way, of a device that moves so many a second."""
    return bandwidth * LATENCY / processors


def tile_for(itemsizes: Collection[int], compact: bool) -> Tile:
    """How programs work on streams of these sizes."""
    return (COMPACT_TILES if compact else TILES)[max(itemsizes)]


def shape(
    itemsizes: Collection[int], low_bytes: int, sums_up: bool, compact: bool, target: Target
) -> dict[str, Any]:
    """The options of a launch: its warps, and as many registers a thread as leave room for the
    threads that keep the memory busy. `low_bytes`: of what a weight lacks, an element.
    """
    tile = tile_for(itemsizes, compact)
    threads = tile.warps * target.warp_size
    programs = THREADS / threads
    if not sums_up:  # sums in float64 want the registers
        asked = tile.thread_bytes // max(itemsizes) * (sum(itemsizes) + low_bytes) * threads
        needed = target.bytes_needed * (COMPACT_PART if compact else 1)
        programs = max(programs, needed / asked)
    registers = REGISTERS // (math.ceil(programs) * threads) // 8 * 8
    return options(target.backend, tile.warps, min(THREAD_REGISTERS, registers))


def target(device: torch.device) -> Target:
    """What kernels for this device, the current one, are compiled for."""
    if device.type != "cuda":
        return Target("interpreter", 32, 0)
    found, needed = triton.runtime.driver.active.get_current_target(), 0.0
    if found.backend == "cuda":  # of which alone the registers can be chosen
        about = triton.runtime.driver.active.utils.get_device_properties(device.index)
        bandwidth = triton.testing.get_dram_gbps(device.index) * 1e9
        needed = bytes_needed(bandwidth, about["multiprocessor_count"])
    return Target(found.backend, int(found.warp_size), needed)


def norm_lanes(itemsize: int, warp_size: int) -> dict[str, int]:
    """The constants of square_sums: COUNT blocks a program, in slices of a 128-bit access each."""
    block = norm.NORM_BLOCK.value
    return {
        "COUNT": max(1, NORM_BYTES // (block * itemsize)),
        "SLICE": min(block, 16 // itemsize * warp_size),
    }
