"""Parity on a device with the CPU engine: twins, then the checks by name.

Every check returns how many numbers differ. Where the host counts steps a number differs if one of
its bits does; where the device counts them, by more than `CLOSE`: see docs/gpu.md, Bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

import fastopt
from benchmarks.record import Record

SIZES = [0, 1, 5, 127, 1024, 2049, 100_003]
STEPS = 3
CLOSE = 1e-5
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("Adam", {"amsgrad": True, "maximize": True}),
    *(
        ("RMSprop", {"momentum": momentum, "centered": centered})
        for momentum in (0, 0.9)
        for centered in (False, True)
    ),
]
STATEFUL = [VARIANTS[1], VARIANTS[3], VARIANTS[-1]]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
# The passes around the update; what leaves the count of steps to the device is not among them.
TAIL: dict[str, Any] = {
    **{"max_grad_norm": 1.0, "max_grad_value": 0.5, "l1": 1e-3, "ema_decay": 0.9},
    **{"clear_grads": True, "track_stats": True},
}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t(),
    "sliced": lambda t: t[:, 1:9:2],
    "misaligned": lambda t: t.flatten()[1:],
}


@contextmanager
def backend(name: str) -> Iterator[None]:
    """FASTOPT_BACKEND for what is stepped in here."""
    before = os.environ.get("FASTOPT_BACKEND")
    os.environ["FASTOPT_BACKEND"] = name
    try:
        yield
    finally:
        del os.environ["FASTOPT_BACKEND"]
        if before is not None:
            os.environ["FASTOPT_BACKEND"] = before


class Twins:
    """The same tensors twice: `engine` on the CPU, `ours` on the device."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.engine = [t.detach().requires_grad_() for t in tensors]
        self.ours = []
        for t in tensors:  # with the strides and the offset of the original, which `.to` may change
            size = t.untyped_storage().size() // t.dtype.itemsize
            memory = torch.empty(size, dtype=t.dtype, device=device)
            there = memory.as_strided(t.shape, t.stride(), t.storage_offset())
            self.ours.append(there.copy_(t.detach()).requires_grad_())

    def grads(self, seed: int, absent: Sequence[int] = ()) -> None:
        """New gradients for both."""
        generator = torch.Generator().manual_seed(seed)
        for i, (p, q) in enumerate(zip(self.engine, self.ours, strict=True)):
            p.grad = q.grad = None
            if i not in absent:
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
                q.grad = p.grad.to(q.device, copy=True)

    def differing(self, a: Any, b: Any, bits: bool = True) -> int:
        """Numbers that differ between the optimizers of the engine's tensors and of ours."""
        count = 0
        for p, q in zip(self.engine, self.ours, strict=True):
            tensors = [(p, q), *((s, b.state[q][k]) for k, s in a.state.get(p, {}).items())]
            for expected, got in tensors:
                x, y = (
                    torch.view_as_real(t) if t.is_complex() else t
                    for t in (expected.detach(), got.detach().cpu())
                )
                same = (x == y) | (x.isnan() & y.isnan())
                count += int((~(same if bits else same | torch.isclose(x, y, CLOSE, CLOSE))).sum())
        return count


def normal(shape: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def pair(device: torch.device) -> Twins:
    """A tensor of one block and one of several."""
    return Twins([normal(n, seed=n) for n in (5, 2049)], device)


def make(twins: Twins, cls: str, options: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    """The engine's optimizer and ours; `more` is for ours alone."""
    kind = getattr(fastopt, cls)
    return kind(twins.engine, **options), kind(twins.ours, **{**options, **more})


def engine_step(a: Any) -> None:
    with backend("cpu"):
        a.step()


def step_both(twins: Twins, a: Any, b: Any, seed: int, absent: Sequence[int] = ()) -> None:
    """One step of each with the same new gradients."""
    twins.grads(seed, absent=absent)
    engine_step(a)
    b.step()


def steps(twins: Twins, cls: str, options: dict[str, Any]) -> int:
    """A few steps, no more."""
    a, b = make(twins, cls, options)
    for k in range(STEPS):
        step_both(twins, a, b, k)
    return twins.differing(a, b)


def variant(cls: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> int:
    """Several sizes in one launch."""
    return steps(Twins([normal(n, dtype, i) for i, n in enumerate(SIZES)], device), cls, options)


def layout(name: str, device: torch.device) -> int:
    """Parameters as views, with contiguous gradients."""
    views = [LAYOUTS[name](normal((33, 47), seed=i)) for i in range(2)]
    return steps(Twins(views, device), "AdamW", {})


def groups(device: torch.device) -> int:
    """Learning rates by group, gradients that come and go."""
    twins = Twins([normal(300 + i, seed=i) for i in range(6)], device)
    a, b = make(twins, "Adam", {"lr": 1e-3})
    for made in (a, b):
        (group,) = made.param_groups
        made.param_groups = [
            {**group, "params": [p], "lr": 1e-3 * 0.9**i} for i, p in enumerate(group["params"])
        ]
    for k in range(5):
        step_both(twins, a, b, k, absent=[] if k == 0 else [k % 6, (k + 2) % 6])
    return twins.differing(a, b)


def scaler(cls: str, options: dict[str, Any], device: torch.device) -> int:
    """Scaled steps through GradScaler; the first and the third overflow and are skipped."""
    twins = pair(device)
    a, b = make(twins, cls, options, fused=True)  # else the scaler unscales by itself
    ours = torch.amp.GradScaler(device.type, init_scale=8.0, growth_interval=10**6)
    for k, overflows in enumerate((True, False, True, False, False)):
        ours.scale(torch.ones((), device=device))  # makes its tensors
        twins.grads(k)
        if not overflows:
            engine_step(a)
        for q in twins.ours:
            assert q.grad is not None
            q.grad.mul_(torch.inf if overflows else ours.get_scale())
        ours.step(b)
        ours.update()
    return twins.differing(a, b, bits=False)


def passes(cls: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> int:
    """All of them, several sizes in one launch; the norm's bits and the cleared gradients too."""
    twins = Twins([normal(n, dtype, i) for i, n in enumerate(SIZES)], device)
    a, b = make(twins, cls, {**options, **TAIL})
    count = 0
    for k in range(STEPS):
        step_both(twins, a, b, k)
        count += int(a.grad_norm != b.grad_norm.cpu())
        count += sum(int(q.grad.count_nonzero()) for q in twins.ours if q.grad is not None)
    return count + twins.differing(a, b)


def skipping(cls: str, options: dict[str, Any], device: torch.device) -> int:
    """A NaN in the first and in the third step: the device leaves them out and counts them."""
    twins = pair(device)
    a, b = make(twins, cls, {**options, **TAIL, "skip_nonfinite": True})
    for k, bad in enumerate((True, False, True, False)):
        twins.grads(k)
        for t in (twins.engine[1], twins.ours[1]):
            assert t.grad is not None
            t.grad[7] = torch.nan if bad else 0.5
        engine_step(a)
        b.step()
    missed = abs(int(b.skipped_steps) - int(a.skipped_steps))
    return twins.differing(a, b, bits=False) + missed


def capturable(cls: str, device: torch.device) -> int:
    """Step counts and bias corrections on the device, `lr` a tensor there."""
    twins, lr = pair(device), torch.tensor(0.01, device=device)
    a, b = make(twins, cls, {"lr": 0.01}, capturable=True, lr=lr)
    for k in range(STEPS):
        a.param_groups[0]["lr"] = 0.01 / (1 + k)
        lr.fill_(0.01 / (1 + k))
        step_both(twins, a, b, k)
    return twins.differing(a, b, bits=False)


def graph(cls: str, own: dict[str, Any], device: torch.device) -> int:
    """A captured step replayed with other gradients and another `lr` in the same memory."""
    twins, lr = pair(device), torch.tensor(0.01, device=device)
    a, b = make(twins, cls, {"lr": 0.01, **own}, capturable=True, lr=lr)
    step_both(twins, a, b, 0)
    held = [q.grad for q in twins.ours]
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        b.step()
    for k in range(1, 4):
        a.param_groups[0]["lr"] = 0.01 / (1 + k)
        lr.fill_(0.01 / (1 + k))
        twins.grads(k)
        engine_step(a)
        for q, memory in zip(twins.ours, held, strict=True):
            assert memory is not None
            assert q.grad is not None
            q.grad = memory.copy_(q.grad)
        captured.replay()
    return twins.differing(a, b, bits=False)


def streams(device: torch.device) -> int:
    """Steps on streams in turn, gradients freed and allocated anew between them."""
    twins = Twins([normal(100_003, seed=i) for i in range(4)], device)
    a, b = make(twins, "AdamW", {})
    side = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
    for k in range(12):
        stream = side[k % 2]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step_both(twins, a, b, k)
            for q in twins.ours:
                q.grad = None
        torch.cuda.current_stream(device).wait_stream(stream)
    return twins.differing(a, b)


def devices(device: torch.device) -> int:
    """One optimizer over two devices."""
    twins = Twins([normal(2049, seed=i) for i in range(4)], device)
    other = torch.device("cuda", (device.index + 1) % torch.cuda.device_count())
    for i in (1, 3):
        twins.ours[i] = twins.ours[i].detach().to(other).requires_grad_()
    return steps(twins, "AdamW", {})


def checks(device: torch.device) -> Iterator[tuple[str, Callable[[torch.device], int]]]:
    """Every check that this device can run, by name."""
    for (cls, options), dtype in product(VARIANTS, DTYPES):
        name = f"{cls} {options} {str(dtype).removeprefix('torch.')}"
        yield name, partial(variant, cls, options, dtype)
    for name in LAYOUTS:
        yield f"layout: {name}", partial(layout, name)
    yield "groups", groups
    for cls, options in STATEFUL:
        yield f"GradScaler: {cls}", partial(scaler, cls, options)
        for dtype in DTYPES[:3]:
            name = f"passes: {cls} {str(dtype).removeprefix('torch.')}"
            yield name, partial(passes, cls, options, dtype)
        yield f"skipping: {cls}", partial(skipping, cls, options)
    for cls in ("AdamW", "RMSprop"):
        yield f"capturable: {cls}", partial(capturable, cls)
        if device.type == "cuda":
            yield f"graph: {cls}", partial(graph, cls, {})
            yield f"graph, passes: {cls}", partial(graph, cls, {**TAIL, "skip_nonfinite": True})
    if device.type == "cuda":
        yield "streams", streams
        if torch.cuda.device_count() > 1:
            yield "devices", devices


def parity(device: torch.device) -> list[Record]:
    """Run every check; one that raises has failed and says how."""
    rows: list[Record] = []
    for name, check in checks(device):
        row: Record = {"check": name}
        try:
            row["differing"] = check(device)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        rows.append(row)
    return rows
