"""One fused pass over given lists: one function a rule, named and ordered as torch's.

`sgd`, `adam`, `adamw`, ...: the functional form of every class here whose torch module has one
(`torch.optim.adam.adam` and kin). Each updates `params` and the states in place, exactly as a step
of its class does; takes torch's arguments, lists of equal length with one entry per parameter; and
counts up `state_steps`. A None among states that the first step begins (SGD's momentum buffers) is
replaced by that parameter's first one. `foreach`, `fused` and `has_complex` are accepted and change
nothing. Compact formats are given as a param group and a state have them: `state_bits`,
`master_weight_bits`, `stochastic_rounding`, `rounding_seed`, and lists of what lies beside states
and parameters, `exp_avg_scales`, ..., `master_lows`.
Those of rules over whole tensors (`muon`, `adafactor`) are torch's own.
`capturable`, `differentiable` and `has_sparse_grad` are torch's own functions' business.
All raise RuntimeError, before anything is written, where a tensor does not fit its parameter or is
not a plain CPU tensor.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import _core, declared, optim
from .arguments import FORMATS
from .optim._fused import FusedStep
from .precision import ASKING, SCALE

REFUSED = ("capturable", "differentiable", "has_sparse_grad")


class Form:
    """The functional form of one class."""

    def __init__(self, cls: type[FusedStep], theirs: Callable[..., None]) -> None:
        self.__name__ = self.__qualname__ = theirs.__name__
        self.__doc__ = (
            f"{cls.__name__} over lists: see :class:`fastopt.{cls.__name__}` for the algorithm, "
            f"`{theirs.__module__}.{theirs.__name__}` for the arguments."
        )
        self._rule = cls._rule
        own = inspect.signature(theirs).parameters
        formats = self._arguments_of_formats(own)
        self.__signature__ = inspect.Signature([*own.values(), *formats])
        arguments = self.__signature__.parameters
        self._names, self._known = [*arguments], set(arguments)
        self._places = sum(a.kind is not a.KEYWORD_ONLY for a in arguments.values())
        self._defaults = {n: a.default for n, a in arguments.items() if a.default is not a.empty}
        self._refused = [name for name in REFUSED if name in arguments]
        # What torch's form has no argument for is what the class has it be; and where a param group
        # has betas, torch's forms have beta1 and beta2, for etas etaminus and etaplus.
        group, numbers = cls([torch.empty(0)]).param_groups[0], _core.hyper(self._rule)
        self._hyper = {k: group[k] for k in numbers if k in group and k not in arguments}
        self._several = {
            key: [n for n in own if n != key and n.startswith(key.removesuffix("s"))]
            for key, count in numbers.items()
            if count > 1
        }

    def _arguments_of_formats(self, theirs: Mapping[str, Any]) -> list[inspect.Parameter]:
        """Those of compact formats: what a param group says, then lists of second planes."""
        states = {name for variant in _core.variants(self._rule) for name in variant}
        said = {name: FORMATS[name].default for name in (*ASKING, "rounding_seed")}
        lists = ["master_lows", *(f"{name}{SCALE}s" for name in sorted(states))]
        if not any(name in theirs for name in names_of_list("step")):
            lists.append("state_steps")  # noise is keyed by it, whatever the rule
        values = said | dict.fromkeys(lists)
        kind = inspect.Parameter.KEYWORD_ONLY
        return [inspect.Parameter(name, kind, default=value) for name, value in values.items()]

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
        numbers = dict(_core.carried(self._rule, group))
        kept = [list_of(given, name) for name in (*dict(states), *numbers)]
        lows = {0: given["master_lows"]}
        lows |= {k: given[f"{name}{SCALE}s"] for k, (name, _) in enumerate(states, 2)}
        seconds = {place: of for place, of in lows.items() if of is not None}
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
            self._rule,
            params,
            grads,
            begun,
            carried,
            seconds,
            first,
            group,
            maximize,
            scale,
            threads,
        )
        for of, now in zip(lists, begun, strict=True):
            of[:] = now


def list_of(given: dict[str, Any], state: str) -> str:
    """The argument that lists a state: `exp_avgs`, `momentum_buffer_list`, `state_steps`."""
    return next(name for name in names_of_list(state) if name in given)


def names_of_list(state: str) -> tuple[str, ...]:
    return f"{state}s", f"{state}_list", f"state_{state}s"


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
def forms() -> dict[str, Callable[..., None]]:
    """Every form, by its name in torch."""
    found = {}
    for cls in optim.CLASSES:
        module = cls.__bases__[1].__module__
        name = module.rsplit(".", 1)[-1].lstrip("_")
        if theirs := getattr(sys.modules[module], name, None):
            found[name] = theirs if cls._rule in declared.WHOLE else Form(cls, theirs)
    return found


def __getattr__(name: str) -> Callable[..., None]:
    if name not in forms():
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}; its forms: {', '.join(forms())}"
        )
    return forms()[name]


def __dir__() -> list[str]:
    return [*globals(), *forms()]
