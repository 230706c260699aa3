"""What a program is made of, as data: options, tensors of any layout, gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from support import ALL_DTYPES, values
from torch import Tensor

import fastopt

KERNELS = [cls for cls in fastopt.optim.CLASSES if cls._rule in fastopt._core.rules()]
CLASSES = {cls.__name__: cls for cls in KERNELS}
SHAPES = [(), (0,), (1,), (7,), (64,), (70,), (3, 5), (4, 17), (2, 3, 2, 2), (0, 3), (33, 2)]
LARGE = (40_961,)  # enough for two of the engine's threads
LAYOUTS = ("contiguous", "transposed", "sliced", "offset", "channels_last")

# Not nearer to 0: of 1 - beta no float32 would keep the difference from 1.
fractions = st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.99, 0.999]) | st.floats(0.01, 0.9999)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "lr": st.sampled_from([0.0, 1e-3, 0.1]) | st.floats(0, 1),
    "alpha": fractions,
    "alpha_warmup": st.none() | st.integers(0, 9),
    "beta3_warmup": st.none() | st.integers(0, 9),
    "no_prox": st.booleans(),
    "always_adapt": st.booleans(),
    "bias_correction": st.booleans(),
    "trust_coefficient": st.floats(1e-4, 0.1),
    "warmup_steps": st.integers(0, 9),
    "r": st.floats(0, 2),
    "weight_lr_power": st.floats(0, 2),
    "rho": fractions,
    "momentum_decay": fractions,
    "etas": st.tuples(st.floats(0.1, 0.9), st.floats(1.1, 3)),
    "step_sizes": st.tuples(st.floats(1e-6, 1e-2), st.floats(1e-2, 50)),
    "lambd": st.floats(0, 1),
    "t0": st.sampled_from([0.0, 1.5, 1e6]),
    "lr_decay": st.just(0.0) | st.floats(0, 1),
    "initial_accumulator_value": st.just(0.0) | st.floats(0.01, 1),
    "eps": st.sampled_from([1e-8, 1e-3, 1.0]),
    "weight_decay": st.sampled_from([0.0, 0.01]) | st.floats(0, 2),
    "momentum": st.just(0.0) | fractions,
    "dampening": fractions,
    "amsgrad": st.booleans(),
    "centered": st.booleans(),
    "maximize": st.booleans(),
    "decoupled_weight_decay": st.booleans(),
    "eps_in_sqrt": st.booleans(),
    "max_grad_norm": st.none() | st.floats(0, 10),
    "max_grad_value": st.none() | st.floats(0, 3),
    "skip_nonfinite": st.booleans(),
    "l1": st.just(0.0) | st.floats(0, 1),
    "ema_decay": st.none() | st.floats(0, 1),
    "clear_grads": st.booleans(),
    "track_stats": st.booleans(),
    "nesterov": st.booleans(),
}


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers in memory of another layout; zeros stand between and around them."""
    if layout == "transposed":
        order = tuple(reversed(range(x.dim())))
        return x.permute(order).contiguous().permute(order)
    if layout == "sliced":
        memory = torch.zeros([2 * n + 1 for n in x.shape] or [3], dtype=x.dtype)
        view = memory[(slice(1, None, 2),) * x.dim()] if x.dim() else memory[1]
        return view.copy_(x)
    if layout == "offset":
        return torch.zeros(x.numel() + 3, dtype=x.dtype)[3:].view(x.shape).copy_(x)
    if layout == "channels_last" and x.dim() == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "expanded" and x.dim():
        return x[:1].clone().expand(x.shape)
    return x.clone()


@dataclass(frozen=True)
class Leaf:
    """A parameter."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: str = "contiguous"
    seed: int = 0
    module: bool = False  # a Parameter, as modules have

    def make(self) -> Tensor:
        x = laid_out(values(self.shape, self.dtype, self.seed), self.layout)
        return torch.nn.Parameter(x) if self.module else x.requires_grad_()


@dataclass(frozen=True)
class Gradient:
    """What a backward() leaves."""

    seed: int = 0
    layout: str = "contiguous"
    special: float = 0.0  # in the middle, where it is not 0
    in_place: bool = False

    def give(self, p: Tensor) -> None:
        g = values(p.shape, p.dtype, self.seed, wide=True)
        if self.special and g.numel():
            g.view(-1)[g.numel() // 2] = self.special
        if not self.in_place or p.grad is None:
            p.grad = laid_out(g, self.layout)
        elif p.grad.stride() == laid_out(p.grad, "contiguous").stride():  # nothing expanded
            with torch.no_grad():
                p.grad.copy_(g)


@dataclass(frozen=True)
class Group:
    """A param group."""

    leaves: list[Leaf]
    options: dict[str, Any] = field(default_factory=dict)

    def make(self) -> dict[str, Any]:
        return {"params": [leaf.make() for leaf in self.leaves], **self.options}


@dataclass(frozen=True)
class Program:
    """An optimizer before its first step."""

    kind: str
    groups: list[Group]


def allowed(options: dict[str, Any]) -> dict[str, Any]:
    """Nesterov needs momentum without dampening."""
    if options.get("nesterov") and (not options.get("momentum") or options.get("dampening")):
        return options | {"nesterov": False}
    return options


def options_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    known = CLASSES[kind]([torch.zeros(1)]).defaults
    few = {k: s for k, s in OPTIONS.items() if k in known}
    if "betas" in known:
        few["betas"] = st.tuples(*[fractions] * len(known["betas"]))
    if "train_mode" in known:  # what draws the parameter to its average is not 0
        pull = st.floats(0.01, 0.9999)
        few |= {"betas": st.tuples(pull, fractions)} if "betas" in known else {"momentum": pull}
    few.pop("decoupled_weight_decay") if kind == "AdamW" else None
    return st.fixed_dictionaries({}, optional=few).map(allowed)


@st.composite
def leaves(draw: st.DrawFn, shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> Leaf:
    return Leaf(
        draw(st.sampled_from(shapes)),
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(LAYOUTS)),
        draw(st.integers(0, 99)),
        draw(st.booleans()),
    )


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Few shapes and dtypes a program, so that its tensors fit each other's memory."""
    kind = draw(st.sampled_from([*CLASSES]))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2))
    dtypes = draw(st.lists(st.sampled_from(ALL_DTYPES), min_size=1, max_size=2))
    if draw(st.integers(0, 19)) == 19:
        shapes, dtypes = [LARGE], [torch.float32]
    group = st.builds(
        Group, st.lists(leaves(shapes, dtypes), min_size=1, max_size=3), options_of(kind)
    )
    return Program(kind, draw(st.lists(group, min_size=1, max_size=3)))


gradients = st.builds(
    Gradient,
    st.integers(0, 999),
    st.sampled_from([*LAYOUTS, "expanded"]),
    st.sampled_from([0.0] * 8 + [torch.inf, torch.nan]),
    st.booleans(),
)
