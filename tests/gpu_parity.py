"""Parity on a device with the CPU engine: twins, then the checks by name.

Every check returns how many numbers differ. Where the host counts steps a number differs if one of
its bits does; where the device counts them, by more than `CLOSE`: see docs/gpu.md, Bits.

    python tests/gpu_parity.py          # a line of JSON a check; `benchmarks gpu` runs it first
    python tests/gpu_parity.py cuda:1
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import fastopt
from fastopt import _core, optim

CLASSES = [cls for cls in optim.CLASSES if cls._rule in _core.rules()]  # with kernels
SIZES = [0, 1, 5, 127, 1024, 2049, 100_003]
STEPS = 3
CLOSE = 1e-5
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("AdamW", {}),
    ("Adam", {"amsgrad": True, "maximize": True}),
    ("Adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ("Lion", {"weight_decay": 0.1}),
    *(
        ("RMSprop", {"momentum": momentum, "centered": centered})
        for momentum in (0, 0.9)
        for centered in (False, True)
    ),
]
# Those whose parameters carry more numbers than their step.
CARRYING = [cls.__name__ for cls in CLASSES if len(_core.carried(cls._rule)) > 1]
STATEFUL = [VARIANTS[1], VARIANTS[3], VARIANTS[-1], *((name, {}) for name in CARRYING)]
VARIANTS += [(cls.__name__, {}) for cls in CLASSES if cls.__name__ not in dict(VARIANTS)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]
# Of parameter, gradient and states.
MIXED = [
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.float64, torch.float16, torch.float32),
]
# The passes around the update; what leaves the count of steps to the device is not among them.
TAIL: dict[str, Any] = {
    **{"max_grad_norm": 1.0, "max_grad_value": 0.5, "l1": 1e-3, "ema_decay": 0.9},
    **{"clear_grads": True, "track_stats": True},
}
SKIPPING = {**TAIL, "skip_nonfinite": True}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda t: t.t(),
    "sliced": lambda t: t[:, 1:9:2],
    "misaligned": lambda t: t.flatten()[1:],
}


class Twins:
    """The same tensors twice, each with an optimizer: `engine` on the CPU, `ours` on the device."""

    def __init__(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        self.engine = [t.detach().requires_grad_() for t in tensors]
        self.ours = []
        for t in self.engine:  # with its strides and its offset, which `.to` may change
            size = t.untyped_storage().size() // t.dtype.itemsize
            memory = torch.empty(size, dtype=t.dtype, device=device)
            there = memory.as_strided(t.shape, t.stride(), t.storage_offset())
            self.ours.append(there.copy_(t.detach()).requires_grad_())

    def make(self, cls: str, options: dict[str, Any], **more: Any) -> Twins:
        """The engine's optimizer and ours; `more` is for ours alone."""
        kind = getattr(fastopt, cls)
        self.a, self.b = kind(self.engine, **options), kind(self.ours, **{**options, **more})
        return self

    def grads(self, seed: int, absent: Sequence[int] = ()) -> None:
        """New gradients for both."""
        generator = torch.Generator().manual_seed(seed)
        for i, (p, q) in enumerate(zip(self.engine, self.ours, strict=True)):
            p.grad = q.grad = None
            if i not in absent:
                p.grad = torch.randn(p.shape, generator=generator, dtype=p.grad_dtype)
                q.grad = p.grad.to(q.device, copy=True)

    def engine_step(self) -> None:
        with patch.dict(os.environ, FASTOPT_BACKEND="cpu"):
            self.a.step()

    def set_lr(self, lr: float, there: Tensor) -> None:
        self.a.param_groups[0]["lr"] = lr
        there.fill_(lr)

    def differing(self, bits: bool = True) -> int:
        """Numbers that differ between the tensors and states of the engine and ours."""
        count = 0
        for p, q in zip(self.engine, self.ours, strict=True):
            state = self.a.state.get(p, {})
            for expected, got in [(p, q), *((s, self.b.state[q][k]) for k, s in state.items())]:
                x, y = (
                    torch.view_as_real(t) if t.is_complex() else t
                    for t in (expected.detach(), got.detach().cpu())
                )
                same = (x == y) | (x.isnan() & y.isnan())
                count += int((~(same if bits else same | torch.isclose(x, y, CLOSE, CLOSE))).sum())
        return count


def normal(sizes: Iterable[Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Random tensors, each of its own seed."""
    return [
        torch.randn(n, generator=torch.Generator().manual_seed(i), dtype=dtype)
        for i, n in enumerate(sizes)
    ]


# A tensor of one block and one of several.
FEW = (5, 2049)


def step_both(twins: Twins, seed: int, absent: Sequence[int] = ()) -> None:
    """One step of each with the same new gradients."""
    twins.grads(seed, absent)
    twins.engine_step()
    twins.b.step()


def steps(twins: Twins) -> int:
    """A few steps, no more."""
    for k in range(STEPS):
        step_both(twins, k)
    return twins.differing()


def variant(cls: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> int:
    """Several sizes in one launch."""
    return steps(Twins(normal(SIZES, dtype), device).make(cls, options))


def mixed(types: Sequence[torch.dtype], device: torch.device) -> int:
    """Parameters, gradients and states, each of its own dtype."""
    param, grad, state = types
    twins = Twins(normal(SIZES, param), device)
    for p in (*twins.engine, *twins.ours):
        p.grad_dtype = grad
    step_both(twins.make("AdamW", {}), STEPS)
    for made in (twins.a, twins.b):
        for kept in made.state.values():
            kept |= {name: t.to(state) for name, t in kept.items() if t.ndim}
    return steps(twins)


def layout(name: str, device: torch.device) -> int:
    """Parameters as views, with contiguous gradients."""
    views = map(LAYOUTS[name], normal([(33, 47)] * 2))
    return steps(Twins(views, device).make("AdamW", {}))


def groups(device: torch.device) -> int:
    """Learning rates by group, gradients that come and go."""
    twins = Twins(normal(range(300, 306)), device).make("Adam", {"lr": 1e-3})
    for made in (twins.a, twins.b):
        (group,) = made.param_groups
        made.param_groups = [
            {**group, "params": [p], "lr": 1e-3 * 0.9**i} for i, p in enumerate(group["params"])
        ]
    for k in range(5):
        step_both(twins, k, absent=[] if k == 0 else [k % 6, (k + 2) % 6])
    return twins.differing()


def scaler(cls: str, options: dict[str, Any], device: torch.device) -> int:
    """Scaled steps through GradScaler; the first and the third overflow and are skipped."""
    # By default the scaler unscales by itself.
    twins = Twins(normal(FEW), device).make(cls, options, fused=True)
    ours = torch.amp.GradScaler(device.type, init_scale=8.0, growth_interval=10**6)
    for k, overflows in enumerate((True, False, True, False, False)):
        ours.scale(torch.ones((), device=device))  # makes its tensors
        twins.grads(k)
        if not overflows:
            twins.engine_step()
        for q in twins.ours:
            assert q.grad is not None
            q.grad.mul_(torch.inf if overflows else ours.get_scale())
        ours.step(twins.b)
        ours.update()
    return twins.differing(bits=False)


def passes(cls: str, options: dict[str, Any], dtype: torch.dtype, device: torch.device) -> int:
    """All of them, several sizes in one launch; the norm's bits and the cleared gradients too."""
    twins = Twins(normal(SIZES, dtype), device).make(cls, {**options, **TAIL})
    wrong = 0
    for k in range(STEPS):
        step_both(twins, k)
        wrong += int(twins.a.grad_norm != twins.b.grad_norm.cpu())
        wrong += sum(int(q.grad.count_nonzero()) for q in twins.ours if q.grad is not None)
    return wrong + twins.differing()


def skipping(cls: str, options: dict[str, Any], device: torch.device) -> int:
    """A NaN in the first and in the third step: the device leaves them out and counts them."""
    twins = Twins(normal(FEW), device).make(cls, {**options, **SKIPPING})
    for k, bad in enumerate((True, False, True, False)):
        twins.grads(k)
        for t in (twins.engine[1], twins.ours[1]):
            assert t.grad is not None
            t.grad[7] = torch.nan if bad else 0.5
        twins.engine_step()
        twins.b.step()
    return twins.differing(bits=False) + abs(
        int(twins.b.skipped_steps) - int(twins.a.skipped_steps)
    )


def capturable(cls: str, device: torch.device) -> int:
    """Step counts and bias corrections on the device, `lr` a tensor there."""
    lr = torch.tensor(0.01, device=device)
    twins = Twins(normal(FEW), device).make(cls, {"lr": 0.01}, capturable=True, lr=lr)
    for k in range(STEPS):
        twins.set_lr(0.01 / (1 + k), lr)
        step_both(twins, k)
    return twins.differing(bits=False)


def graph(cls: str, own: dict[str, Any], device: torch.device) -> int:
    """A captured step replayed with other gradients and another `lr` in the same memory."""
    lr = torch.tensor(0.01, device=device)
    twins = Twins(normal(FEW), device).make(cls, {"lr": 0.01, **own}, capturable=True, lr=lr)
    step_both(twins, 0)
    held = [q.grad for q in twins.ours]
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        twins.b.step()
    for k in range(1, 4):
        twins.set_lr(0.01 / (1 + k), lr)
        twins.grads(k)
        twins.engine_step()
        for q, memory in zip(twins.ours, held, strict=True):
            assert memory is not None
            assert q.grad is not None
            q.grad = memory.copy_(q.grad)
        captured.replay()
    return twins.differing(bits=False)


def streams(device: torch.device) -> int:
    """Steps on streams in turn, gradients freed and allocated anew between them."""
    twins = Twins(normal([100_003] * 4), device).make("AdamW", {})
    side = [torch.cuda.Stream(device) for _ in range(2)]  # type: ignore[no-untyped-call]
    for k in range(12):
        stream = side[k % 2]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            step_both(twins, k)
            for q in twins.ours:
                q.grad = None
        torch.cuda.current_stream(device).wait_stream(stream)
    return twins.differing()


def devices(device: torch.device) -> int:
    """One optimizer over two devices."""
    twins = Twins(normal([2049] * 4), device)
    other = torch.device("cuda", (device.index + 1) % torch.cuda.device_count())
    for i in (1, 3):
        twins.ours[i] = twins.ours[i].detach().to(other).requires_grad_()
    return steps(twins.make("AdamW", {}))


def checks(device: torch.device) -> Iterator[tuple[str, Callable[[torch.device], int]]]:
    """Every check that this device can run, by name."""
    for (cls, options), dtype in product(VARIANTS, DTYPES):
        name = f"{cls} {options} {str(dtype).removeprefix('torch.')}"
        yield name, partial(variant, cls, options, dtype)
    for types in MIXED:
        names = [str(dtype).removeprefix("torch.") for dtype in types]
        yield f"mixed: {' '.join(names)}", partial(mixed, types)
    for name in LAYOUTS:
        yield f"layout: {name}", partial(layout, name)
    yield "groups", groups
    for cls, options in STATEFUL:
        yield f"GradScaler: {cls}", partial(scaler, cls, options)
        for dtype in DTYPES[:3]:
            name = f"passes: {cls} {str(dtype).removeprefix('torch.')}"
            yield name, partial(passes, cls, options, dtype)
        yield f"skipping: {cls}", partial(skipping, cls, options)
    torchs = [name for name in CARRYING if hasattr(torch.optim, name)]  # others have no capturable
    for cls in ("AdamW", "RMSprop", *torchs):
        yield f"capturable: {cls}", partial(capturable, cls)
        if device.type == "cuda":
            yield f"graph: {cls}", partial(graph, cls, {})
            yield f"graph, passes: {cls}", partial(graph, cls, SKIPPING)
    if device.type == "cuda":
        yield "streams", streams
        if torch.cuda.device_count() > 1:
            yield "devices", devices


def parity(device: torch.device) -> Iterator[dict[str, Any]]:
    """Run every check; one that raises has failed and says how."""
    for name, check in checks(device):
        try:
            yield {"check": name, "differing": check(device)}
        except Exception as error:
            yield {"check": name, "error": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Print what every check found; 1 if any failed."""
    failed = False
    for row in parity(torch.device(*sys.argv[1:] or ["cuda:0"])):
        failed |= row.get("differing") != 0
        print(json.dumps(row), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
