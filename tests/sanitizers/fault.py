"""A fault that a sanitizer must see in the core: `address` or `thread`."""

from __future__ import annotations

import ctypes
import sys
import threading

import torch

from fastopt import _core


def address() -> None:
    """The core writes to memory that was freed."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    at = libc.malloc(4 * 64)
    freed = torch.frombuffer((ctypes.c_float * 64).from_address(at), dtype=torch.float32)
    libc.free(ctypes.c_void_p(at))
    _core.stream([], [freed], 1)


def thread() -> None:
    """Two Python threads let the core write to one tensor at the same time."""
    shared = torch.zeros(1 << 20)
    both = threading.Barrier(2)

    def write() -> None:
        both.wait()
        for _ in range(20):
            _core.stream([], [shared], 1)

    threads = [threading.Thread(target=write) for _ in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()


if __name__ == "__main__":
    {"address": address, "thread": thread}[sys.argv[1]]()
