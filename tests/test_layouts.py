"""Layouts of parameters, gradients and states, each against the contiguous result bit for bit, with
the memory beside every view watched; then parameters that share memory, then offsets past 2^31.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from support import (
    NUMBERS,
    ON_TRITON,
    Optimizer,
    assert_same_bits,
    assert_same_state,
    parameter,
    values,
)
from torch import Tensor

pytestmark = pytest.mark.parity

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]

# Each makes a view of the given shape in fresh memory; the memory is found through ._base. Sizes
# lie on both sides of the engine's limits: rows of 64 (kMinRun), gathers of 256 (kGather).
LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[Tensor, tuple[int, ...]], Tensor]]] = {
    "contiguous": ((5, 70), lambda m, s: m[: 5 * 70].view(s)),
    "0-d": ((), lambda m, s: m[3]),
    "empty": ((0,), lambda m, s: m[:0]),
    "empty 2-d": ((0, 3), lambda m, s: m[:0].view(s)),
    "one number": ((1, 1), lambda m, s: m.as_strided(s, (9, 5), 7)),
    "offset": ((333,), lambda m, s: m[3 : 3 + 333]),
    "channels_last": ((2, 3, 5, 7), lambda m, s: m[:210].view(2, 5, 7, 3).permute(0, 3, 1, 2)),
    "channels_last slice": ((2, 3, 5, 7), lambda m, s: m.as_strided(s, (400, 1, 70, 9), 1)),
    "transposed": ((9, 70), lambda m, s: m[:630].view(70, 9).t()),
    "permuted": ((3, 4, 5), lambda m, s: m[:60].view(5, 3, 4).permute(1, 2, 0)),
    "every other": ((311,), lambda m, s: m[1 : 2 * 311 : 2]),
    "every other column": ((4, 70), lambda m, s: m[:560].view(4, 140)[:, ::2]),
    "every other row": ((4, 70), lambda m, s: m[:560].view(8, 70)[::2]),
    "narrow rows": ((20, 7), lambda m, s: m[:200].view(20, 10)[:, 2:9]),
    "rows of 63": ((10, 63), lambda m, s: m[:650].view(10, 65)[:, 1:64]),
    "rows of 64": ((10, 64), lambda m, s: m[:650].view(10, 65)[:, 1:]),
    "long rows": ((3, 300), lambda m, s: m[:930].view(3, 310)[:, 5:305]),
    "block of a cube": ((3, 4, 70), lambda m, s: m[:2160].view(4, 6, 90)[1:, 1:5, 9:79]),
    "transposed slice": ((70, 3), lambda m, s: m[:560].view(8, 70)[1:7:2].t()),
}
# Memory of a view, in numbers of the tensor's dtype: what LAYOUTS address, and some beyond.
MEMORY = 2500


class Watched:
    """A view in memory full of sentinels; whatever lies beside the view must stay one."""

    def __init__(self, content: Tensor, layout: str) -> None:
        shape, make = LAYOUTS[layout]
        assert content.shape == shape
        self.memory = torch.full((MEMORY,), 7.5, dtype=content.dtype)
        beside = torch.ones(MEMORY)
        make(beside, shape).zero_()
        self.beside = beside.bool()
        self.view = make(self.memory, shape)
        self.view.copy_(content)

    def check(self) -> None:
        assert (self.memory[self.beside] == 7.5).all(), "wrote beside the view"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(optimizer: Optimizer, layout: str, dtype: torch.dtype) -> None:
    """Parameter, gradient and states in one layout, each in turn, and all together."""
    shape = LAYOUTS[layout][0]
    hyper = optimizer.strongest
    p0 = parameter(shape, dtype, seed=0)
    grads = [values(shape, dtype, seed=k, wide=True) for k in (1, 2)]
    plain = optimizer.ours([p0], **hyper)
    start = p0.detach().clone()
    for g in grads:
        p0.grad = g.clone()
        plain.step()

    for placed in ("parameter", "gradient", "states", "parameter gradient states"):
        watched = Watched(start, layout) if "parameter" in placed else None
        watches = [watched] if watched else []
        p = torch.nn.Parameter(watched.view if watched else start.clone())
        ours = optimizer.ours([p], **hyper)
        for k, g in enumerate(grads):
            p.grad = g.clone()
            if "gradient" in placed:
                watches.append(Watched(g, layout))
                p.grad = watches[-1].view
            if "states" in placed and k == 1:
                for name, state in ours.state[p].items():
                    if name not in NUMBERS:
                        watches.append(Watched(state, layout))
                        ours.state[p][name] = watches[-1].view
            ours.step()
            assert_same_bits(p.grad, g, "gradient")
        assert_same_state(ours, plain)
        for watch in watches:
            watch.check()


EXPANDED = {
    "all of it": ((3, 70), lambda g: g[:1, :1]),
    "rows": ((3, 70), lambda g: g[:1]),
    "columns": ((3, 70), lambda g: g[:, :1]),
    "middle": ((3, 4, 70), lambda g: g[:, :1]),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", EXPANDED)
def test_expanded_gradients(optimizer: Optimizer, which: str, dtype: torch.dtype) -> None:
    """Gradients as `sum().backward()` makes them: one number in memory for many of the tensor."""
    shape, cut = EXPANDED[which]
    p, q = parameter(shape, dtype, seed=0), parameter(shape, dtype, seed=0)
    a, b = (optimizer.ours([t], **optimizer.strongest) for t in (p, q))
    for k in (1, 2):
        g = cut(values(shape, dtype, seed=k)).clone().expand(shape)
        assert 0 in g.stride()
        p.grad, q.grad = g, g.contiguous()
        a.step()
        b.step()
        assert_same_bits(p.grad, q.grad, "gradient")
    assert_same_state(a, b)
    # The states of a parameter are dense even where its gradient was not.
    assert all(0 not in s.stride() for s in a.state[p].values())


def test_states_have_the_strides_of_torchs(optimizer: Optimizer) -> None:
    for layout, (shape, make) in LAYOUTS.items():
        view = make(torch.zeros(MEMORY), shape)
        p, q = (
            torch.nn.Parameter(view),
            torch.nn.Parameter(view.clone(memory_format=torch.preserve_format)),
        )
        q = torch.nn.Parameter(make(torch.zeros(MEMORY), shape))
        a = optimizer.ours([p], **optimizer.strongest)
        b = optimizer.theirs([q], **optimizer.strongest)
        for t in (p, q):
            t.grad = torch.ones_like(t)
        a.step()
        b.step()
        for name, state in b.state[q].items():
            mine = a.state[p][name]
            assert mine.dtype == state.dtype, (layout, name)
            for size, stride, theirs in zip(mine.shape, mine.stride(), state.stride(), strict=True):
                # The stride of a dimension of one is never used; torch's own are not consistent.
                assert size == 1 or stride == theirs, (layout, name)


@pytest.mark.engine_only("threads")
@pytest.mark.parametrize("threads", [1, 3])
def test_layouts_shared_among_threads(optimizer: Optimizer, threads: int) -> None:
    """Shares begin and end inside rows; a strided tensor lies beside plain ones."""
    torch.set_num_threads(threads)
    shape = (150, 401)
    content, g = values(shape, torch.float32, 0), values(shape, torch.float32, 1, wide=True)
    for rows in (slice(0, 401), slice(0, 802, 2)):
        memory = torch.full((150, 803), 7.5)
        view = memory[:, rows]
        view.copy_(content)
        params = [torch.nn.Parameter(t) for t in (content[0].clone(), view, content.t().clone())]
        plain = [torch.nn.Parameter(p.detach().clone()) for p in params]
        a = optimizer.ours(params, **optimizer.strongest)
        b = optimizer.ours(plain, **optimizer.strongest)
        for p, q, grad in zip(params, plain, (g[0], g, g.t()), strict=True):
            p.grad, q.grad = grad, grad.clone(memory_format=torch.contiguous_format)
        for _ in range(2):
            a.step()
            torch.set_num_threads(1)
            b.step()
            torch.set_num_threads(threads)
        assert_same_state(a, b)
        view.fill_(7.5)
        assert (memory == 7.5).all()


def test_parameters_that_share_memory(optimizer: Optimizer) -> None:
    """Overlapping parameters are updated one after the other, as torch's loop does."""
    torch.set_num_threads(3)
    n = 4_000 if ON_TRITON else 40_000  # several shares
    for size, shift in [(n, n // 4), (100, 1), (n, 0), (n, n - 1)]:
        memory = values((size + shift,), torch.float32, seed=0)
        other = memory.clone()
        params = [torch.nn.Parameter(m[i : i + size]) for m in (memory, other) for i in (0, shift)]
        for i, p in enumerate(params):
            p.grad = values((size,), torch.float32, seed=1 + i % 2)
        together = optimizer.ours(params[:2], **optimizer.strongest)
        alone = [optimizer.ours([p], **optimizer.strongest) for p in params[2:]]
        for a, p in zip(alone, params[2:], strict=True):  # all states begin before all updates
            like = [k for k, start in optimizer.starts().items() if start == "param"]
            a.state[p].update({name: p.detach().clone() for name in like})
        for _ in range(3):
            together.step()
            for a in alone:
                a.step()
        assert_same_bits(memory, other, f"{size} numbers, {shift} apart")


def test_offsets_past_2_to_the_31(optimizer: Optimizer, tmp_path: Path) -> None:
    """Strides that reach past 2^31 elements and 2^32 bytes, in a file that is all holes.

    Only the few pages that the views touch come into being.
    """
    shape, strides = (2, 3, 5), (2**31 + 11, 2**20 + 3, 7)
    total = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))

    def view(name: str, content: Tensor) -> Tensor:
        file = str(tmp_path / name)
        memory = torch.from_file(file, shared=True, size=total, dtype=content.dtype)
        return memory.as_strided(shape, strides).copy_(content)

    dtype = torch.float32
    p, q = (parameter(shape, dtype, seed=0) for _ in range(2))
    p = torch.nn.Parameter(view("parameter", p.detach()))
    a, b = (optimizer.ours([t], **optimizer.strongest) for t in (p, q))
    for k in (1, 2):
        q.grad = values(shape, dtype, seed=k)
        p.grad = view("gradient", q.grad)
        if k == 2:
            for name, state in a.state[p].items():
                if name not in NUMBERS:
                    a.state[p][name] = view(name, state)
        a.step()
        b.step()
    assert_same_state(a, b)
    assert sum(os.stat(f).st_blocks * 512 for f in tmp_path.iterdir()) < 2**26


CHUNK = 2**23  # numbers, of 2 bytes


@contextmanager
def repeated(first: Tensor, second: Tensor, times: int) -> Iterator[Tensor]:
    """A bfloat16 tensor whose first half is one chunk of memory, mapped over and over at successive
    addresses, and whose second half is another: 4 GiB of addresses on 32 MiB of memory.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    size, fixed = CHUNK * 2, 0x10  # MAP_FIXED
    access, private = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    start = libc.mmap(None, size * times * 2, 0, private | 0x4000, -1, 0)
    assert start not in (None, ctypes.c_void_p(-1).value)
    files = []
    try:
        for half, content in enumerate((first, second)):
            file = os.memfd_create("repeated")
            files.append(file)
            os.write(file, content.view(torch.int16).numpy().tobytes())
            for i in range(times):
                at = start + (half * times + i) * size
                got = libc.mmap(at, size, access, mmap.MAP_SHARED | fixed, file, 0)
                assert got == at
        buffer = (ctypes.c_char * (size * times * 2)).from_address(start)
        yield torch.frombuffer(buffer, dtype=torch.bfloat16)
    finally:
        libc.munmap(start, size * times * 2)
        for file in files:
            os.close(file)


@pytest.mark.engine_only("calls the compiled functional form")
@pytest.mark.skipif(sys.platform != "linux", reason="maps one memory many times")
@pytest.mark.parametrize("threads", [1, 2])
def test_more_than_2_to_the_31_elements(threads: int) -> None:
    """Every one of 2^31 + 2^24 elements is updated, once, in one step on one thread or two.

    Elements that lie in the same place count the updates: each place has 129 elements. Two threads
    take a half each, and the halves share no memory.
    """
    import fastopt

    torch.set_num_threads(threads)
    times = 2**30 // CHUNK + 1
    start = torch.full((CHUNK,), 64.0, dtype=torch.bfloat16)
    ramp = (torch.arange(CHUNK) % 2).to(torch.bfloat16)
    with repeated(start, start, times) as memory, repeated(ramp, 1 - ramp, times) as grads:
        assert memory.numel() == 2**31 + 2**24
        fastopt.functional.sgd(
            [memory],
            [grads],
            [None],
            weight_decay=0.0,
            momentum=0.0,
            lr=1.0,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        half = memory.numel() // 2
        assert torch.equal(memory[:CHUNK], 64 - times * ramp)
        assert torch.equal(memory[half : half + CHUNK], 64 - times * (1 - ramp))
        assert times == 129
