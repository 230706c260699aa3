"""Programs that nobody would write, but that somebody runs: what may happen between steps."""

from __future__ import annotations

import copy
import os
import pickle
import warnings
from typing import Any

import torch
from draws import (
    CLASSES,
    LAYOUTS,
    OPTIONS,
    SHAPES,
    Gradient,
    Group,
    Program,
    gradients,
    laid_out,
    leaves,
    options_of,
    programs,
)
from hazards import Hazards
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from memory import Snapshot, parameters, plain
from reference import Reference
from support import ALL_DTYPES, NUMBERS
from torch import Tensor
from trial import Trial, Wrong

from fastopt import _core

which = st.integers(0, 8)  # of the parameters, groups or states, modulo how many there are


class Programs(Hazards):
    """The rules; hazards.py has those in which something breaks."""

    @initialize(program=programs(), given=gradients)
    def make(self, program: Program, given: Gradient) -> None:
        os.environ.pop("FASTOPT_BACKEND", None)
        self.seed = 0
        self.optimizer = CLASSES[program.kind]([group.make() for group in program.groups])
        self.backward(given)

    def teardown(self) -> None:
        os.environ.pop("FASTOPT_BACKEND", None)
        torch.set_num_threads(2)
        _core.select_isa(_core.supported_isas()[0])

    # Steps

    @rule(times=st.integers(1, 3))
    def step(self, times: int) -> None:
        for _ in range(times):
            Trial(self.optimizer).run(self.optimizer.step)

    @rule(given=gradients)
    def step_with_closure(self, given: Gradient) -> None:
        """The closure has been called before the trial begins: it is what gives the gradients."""
        trials = []

        def closure() -> int:
            self.backward(given)
            trials.append(Trial(self.optimizer))
            return 7

        def step() -> None:
            if self.optimizer.step(closure) != 7:
                raise Wrong("the closure's result is lost")

        try:
            step()
        except Exception as error:
            trials[0].judge_refusal(error)
        else:
            trials[0].judge()

    # Gradients

    @rule(given=gradients)
    def backward(self, given: Gradient) -> None:
        for k, p in enumerate(self.params):
            Gradient(given.seed + k, given.layout, given.special, given.in_place).give(p)

    @rule(i=which, given=gradients)
    def backward_of_one(self, i: int, given: Gradient) -> None:
        given.give(self.param(i))

    @rule(i=which)
    def no_gradient(self, i: int) -> None:
        self.param(i).grad = None

    @rule(set_to_none=st.booleans())
    def zero_grad(self, set_to_none: bool) -> None:
        if all(self.is_dense(p.grad) for p in self.params if p.grad is not None):
            self.optimizer.zero_grad(set_to_none)

    @staticmethod
    def is_dense(t: Tensor) -> bool:
        return all(stride or size < 2 for size, stride in zip(t.size(), t.stride(), strict=True))

    # Options

    @rule(
        i=which,
        change=st.sampled_from([*OPTIONS]).flatmap(lambda k: st.tuples(st.just(k), OPTIONS[k])),
        as_tensor=st.booleans(),
    )
    def change(self, i: int, change: tuple[str, Any], as_tensor: bool) -> None:
        name, value = change
        group = self.group(i)
        known = group.keys() | self.optimizer._arguments.keys()
        if name in known and not (name == "decoupled_weight_decay" and self.kind == "AdamW"):
            group[name] = torch.tensor(value) if as_tensor and name == "lr" else value

    @rule(i=which, on=st.booleans())
    def differentiable(self, i: int, on: bool) -> None:
        self.group(i)["differentiable"] = on

    @rule(i=which, on=st.booleans())
    def requires_grad(self, i: int, on: bool) -> None:
        self.param(i).requires_grad_(on)

    @rule(threads=st.integers(1, 3))
    def set_num_threads(self, threads: int) -> None:
        torch.set_num_threads(threads)

    @rule(isa=st.sampled_from(_core.supported_isas()))
    def select_isa(self, isa: str) -> None:
        _core.select_isa(isa)

    @rule(backend=st.sampled_from(["auto", "cpu", "torch"]))
    def select_backend(self, backend: str) -> None:
        os.environ["FASTOPT_BACKEND"] = backend

    @precondition(lambda self: len(self.optimizer.param_groups) < 4)
    @rule(data=st.data(), given=gradients)
    def add_param_group(self, data: st.DataObject, given: Gradient) -> None:
        some = st.lists(leaves(SHAPES, ALL_DTYPES), min_size=1, max_size=2)
        group = data.draw(st.builds(Group, some, options_of(self.kind))).make()
        self.optimizer.add_param_group(group)
        for p in group["params"]:
            given.give(p)

    # Copies

    @rule()
    def through_torch(self) -> None:
        """A checkpoint of ours loads into torch's class, and one of torch's into ours."""
        reference = Reference(self.optimizer)
        # torch rounds what a parameter carries, but for its step, as if it were a moment.
        for p, state in reference.states.items():
            for name in [name for name, _ in _core.carried(reference.name) if name != "step"]:
                if p.is_floating_point() and name in state:
                    state[name].copy_(state[name].to(p.dtype))
        groups = [{"params": group["params"]} for group in self.optimizer.param_groups]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a parameter listed twice
            theirs = type(self.optimizer).__bases__[1](groups, lr=0.1)
        theirs.load_state_dict(self.optimizer.state_dict())
        self.optimizer.load_state_dict(theirs.state_dict())
        if found := reference.differences(self.optimizer):
            raise Wrong(f"changed on its way through torch: {found}")

    @rule(pickled=st.booleans())
    def copied(self, pickled: bool) -> None:
        """The program goes on with a copy, and the original stays what it was."""
        old, snapshot = self.optimizer, Snapshot(self.optimizer)
        grads = [p.grad for p in self.params]
        self.optimizer = pickle.loads(pickle.dumps(old)) if pickled else copy.deepcopy(old)
        for p, q, g in zip(self.params, parameters(old), grads, strict=True):
            if not torch.equal(p.detach().nan_to_num(), q.detach().nan_to_num()):
                raise Wrong("the copy has other numbers")
            p.grad = None if g is None else g.clone()
        if self.optimizer.skipped_steps != old.skipped_steps:
            raise Wrong(f"skipped_steps {self.optimizer.skipped_steps}, was {old.skipped_steps}")
        Trial(self.optimizer).run(self.optimizer.step)
        if changes := snapshot.changes(old):
            raise Wrong(f"a step of the copy changed the original: {changes}")

    # Tensors replaced

    @rule(i=which, layout=st.sampled_from(LAYOUTS), way=st.sampled_from(["data", "set_", "grad"]))
    def replace(self, i: int, layout: str, way: str) -> None:
        p = self.param(i)
        if way == "data":
            p.data = laid_out(p.detach(), layout)
        elif way == "set_":
            with torch.no_grad():
                p.set_(laid_out(p.detach(), layout))
        elif p.grad is not None:
            p.grad = laid_out(p.grad, layout)

    @rule(i=which, k=which, layout=st.sampled_from(LAYOUTS), data=st.booleans())
    def replace_state(self, i: int, k: int, layout: str, data: bool) -> None:
        state, name = self.state(i, k)
        if name and data:
            state[name].data = laid_out(state[name], layout)
        elif name:
            state[name] = laid_out(state[name], layout)

    @rule(i=which, k=which, as_none=st.booleans())
    def lose_state(self, i: int, k: int, as_none: bool) -> None:
        """What is missing begins anew; torch loads nothing that lacks a number."""
        state, name = self.state(i, k)
        if as_none and name not in ("", *NUMBERS, "ema"):
            state[name] = None
        elif name not in ("", *NUMBERS):
            del state[name]

    @rule(i=which)
    def extra_state(self, i: int) -> None:
        if self.optimizer.state.get(self.param(i)):
            self.optimizer.state[self.param(i)]["mine"] = 7

    # Memory that is reached twice

    @rule(
        i=which,
        j=which,
        k=which,
        what=st.sampled_from(["grad is parameter", "grad", "state", "step", "parameter"]),
    )
    def share(self, i: int, j: int, k: int, what: str) -> None:
        a, b = self.param(i), self.param(j)
        if a.shape != b.shape or a.dtype != b.dtype:
            return
        if what == "grad is parameter":
            a.grad = b.detach()
        elif what == "grad":
            a.grad = b.grad
        elif what == "parameter":
            a.data = b.data
        else:
            state, name = self.state(j, k)
            name = "step" if what == "step" and name else name
            mine = self.optimizer.state.get(a, {})
            if plain(mine.get(name)) and plain(state.get(name)):
                mine[name] = state[name]

    @rule(i=which, j=which, of=st.sampled_from(["parameter", "grad"]), shift=st.integers(0, 3))
    def overlap(self, i: int, j: int, of: str, shift: int) -> None:
        """Two as pieces of one buffer, the second of which begins within the first."""
        a, b = self.param(i), self.param(j)
        if a is b or a.dtype != b.dtype:
            return
        memory = torch.randn(shift + max(a.numel(), b.numel())).to(a.dtype)
        pieces = memory[: a.numel()].view(a.shape), memory[shift:][: b.numel()].view(b.shape)
        for p, piece in zip((a, b), pieces, strict=True):
            if of == "grad":
                p.grad = piece
            else:
                p.data = piece

    @rule(i=which, k=which, what=st.sampled_from(["grad", "states", "state and grad"]))
    def tangle(self, i: int, k: int, what: str) -> None:
        """Two of one parameter's own."""
        p, (state, name) = self.param(i), self.state(i, k)
        other = self.state(i, k + 1)[1]
        if what == "grad":
            p.grad = p.detach()
        elif what == "states" and not {name, other} & NUMBERS and name:
            state[name] = state[other]
        elif what == "state and grad" and name not in ("", *NUMBERS) and p.grad is not None:
            state[name] = p.grad

    @rule(i=which)
    def list_twice(self, i: int) -> None:
        p = self.param(i)
        for group in self.optimizer.param_groups:
            if any(q is p for q in group["params"]) and len(group["params"]) < 5:
                group["params"].append(p)
