"""One fused pass over given lists: one function a rule, named and ordered as torch's.

`sgd`, `adam`, `adamw`, ...: the functional form of every class here whose torch module has one
(`torch.optim.adam.adam` and kin). Each updates `params` and the states in place, exactly as a step
of its class does; takes torch's arguments, lists of equal length with one entry per parameter; and
counts up `state_steps`. A None among states that the first step begins (SGD's momentum buffers) is
replaced by that parameter's first one. `foreach`, `fused` and `has_complex` are accepted and change
nothing. `capturable`, `differentiable` and `has_sparse_grad` are torch's own functions' business.
All raise RuntimeError, before anything is written, where a tensor does not fit its parameter or is
not a plain CPU tensor.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import _core, optim
from .optim._fused import FusedStep

REFUSED = ("capturable", "differentiable", "has_sparse_grad")


class Form:
    """The functional form of one class."""

    def __init__(self, cls: type[FusedStep], theirs: Callable[..., None]) -> None:
        self.__name__ = self.__qualname__ = theirs.__name__
        self.__doc__ = (
            f"{cls.__name__} over lists: see :class:`fastopt.{cls.__name__}` for the algorithm, "
            f"`{theirs.__module__}.{theirs.__name__}` for the arguments."
        )
        self.__signature__ = inspect.signature(theirs)
        arguments = self.__signature__.parameters
        self._names, self._known = [*arguments], set(arguments)
        self._places = sum(a.kind is not a.KEYWORD_ONLY for a in arguments.values())
        self._defaults = {n: a.default for n, a in arguments.items() if a.default is not a.empty}
        self._refused = [name for name in REFUSED if name in arguments]
        self._rule = cls._rule
        self._carried = [name for name, _ in _core.carried(self._rule)]
        # What torch's form has no argument for is what the class has it be; and where a param group
        # has betas, torch's forms have beta1 and beta2.
        group, numbers = cls([torch.empty(0)]).param_groups[0], _core.hyper(self._rule)
        self._hyper = {key: group[key] for key in numbers if key not in arguments}
        self._several = {
            key: [f"{key.removesuffix('s')}{i + 1}" for i in range(count)]
            for key, count in numbers.items()
            if count > 1
        }

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        by_place = dict(zip(self._names, args, strict=False))
        given = {**self._defaults, **by_place, **kwargs}
        if (
            given.keys() != self._known
            or len(args) > self._places
            or not kwargs.keys().isdisjoint(by_place)
        ):
            self.__signature__.bind(*args, **kwargs)  # raises the TypeError that says what is wrong
        for option in self._refused:
            if given[option]:
                raise RuntimeError(
                    f"fastopt.functional.{self.__name__} has no {option}=True; use torch's own "
                    "functional form for it"
                )
        params, grads = (given[name] for name in self._names[:2])
        group = {**self._hyper, **given}
        for key, names in self._several.items():
            group[key] = [given[name] for name in names]
        states = _core.states(self._rule, group)
        kept = [list_of(given, name) for name in (*dict(states), *self._carried)]
        check(len(params), {"grads": grads, **{name: given[name] for name in kept}})
        lists = [given[name] for name in kept[: len(states)]]
        carried = [given[name] for name in kept[len(states) :]]
        found_inf, grad_scale = given.get("found_inf"), given.get("grad_scale")
        if found_inf is not None and found_inf.item():
            return
        begun, first = lists, b""
        if any(start is None for _, start in states):
            begun = [begin(of, grads) for of in lists]
            first = bytes(state is None for state in lists[0])
        scale = None if grad_scale is None else grad_scale.item()
        threads, maximize = torch.get_num_threads(), given["maximize"]
        _core.update(
            self._rule, params, grads, begun, carried, first, group, maximize, scale, threads
        )
        for of, now in zip(lists, begun, strict=True):
            of[:] = now


def list_of(given: dict[str, Any], state: str) -> str:
    """The argument that lists a state: `exp_avgs`, `momentum_buffer_list`, `state_steps`."""
    names = (f"{state}s", f"{state}_list", f"state_{state}s")
    return next(name for name in names if name in given)


def begin(states: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    """A state for each parameter: where there is None, room for one like its gradient."""
    pairs = zip(states, grads, strict=True)
    return [torch.empty_like(g) if state is None else state for state, g in pairs]


def check(count: int, lists: dict[str, list[Any]]) -> None:
    """Raise ValueError where a list is not as long as that of the parameters."""
    for name, tensors in lists.items():
        if len(tensors) != count:
            raise ValueError(f"{name} has {len(tensors)} tensors, params {count}")


@cache
def forms() -> dict[str, Form]:
    """Every form, by its name in torch."""
    found = {}
    for cls in optim.CLASSES:
        module = cls.__bases__[1].__module__
        name = module.rsplit(".", 1)[-1]
        if theirs := getattr(sys.modules[module], name, None):
            found[name] = Form(cls, theirs)
    return found


def __getattr__(name: str) -> Form:
    if name not in forms():
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; its forms: {', '.join(forms())}"
        )
    return forms()[name]


def __dir__() -> list[str]:
    return [*globals(), *forms()]
