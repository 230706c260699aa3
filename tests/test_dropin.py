"""Drop-in behaviour over torch's own table of optimizers, `optim_db`: constructors, their errors,
steps, state_dict both ways, copies, param groups, torch's implementation flags.
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import re
from typing import Any

import pytest
import torch
from support import (
    ALL_DTYPES,
    assert_close_state,
    assert_same_state,
    discover,
    parameter,
    params_of,
    run,
)
from torch.testing._internal.common_optimizers import OptimizerErrorEnum, optim_db

pytestmark = pytest.mark.parity

SHAPES = [(5, 3), (17,), (), (2, 3, 4)]
PAIRS = {o.ours.__name__: (o.ours, o.theirs) for o in discover()}
INFOS = {info.name: info for info in optim_db if info.optim_cls in [t for _, t in PAIRS.values()]}
INPUTS = [
    pytest.param(name, kind.kwargs, id=f"{name}-{kind.desc}")
    for name, info in INFOS.items()
    for kind in info.optim_inputs_func(device="cpu")
]
ERRORS = [
    pytest.param(name, error, id=f"{name}-{error.optimizer_error_input.desc}")
    for name, info in INFOS.items()
    for error in info.optim_error_inputs_func(device="cpu", dtype=torch.float32)
]
inputs = pytest.mark.parametrize(("name", "kwargs"), INPUTS)
names = pytest.mark.parametrize("name", PAIRS)


def test_the_table_has_all_of_torchs() -> None:
    torchs = {name for name, (_, cls) in PAIRS.items() if cls.__module__.startswith("torch.")}
    assert INFOS.keys() == torchs >= {"SGD", "Adam", "AdamW", "RMSprop"}


def make(
    name: str, dtype: torch.dtype = torch.float32, **kwargs: Any
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    ours, theirs = PAIRS[name]
    # A tensor lr is shared by both unless copied: a scheduler writes into it.
    a, b = ([parameter(s, dtype, seed=i) for i, s in enumerate(SHAPES)] for _ in range(2))
    return ours(a, **copy.deepcopy(kwargs)), theirs(b, **copy.deepcopy(kwargs))


@pytest.mark.parametrize(("name", "error"), ERRORS)
def test_constructor_errors(name: str, error: Any) -> None:
    """The same exception with the same message as torch; warnings are errors here."""
    assert error.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    given = error.optimizer_error_input
    params = given.params if given.params is not None else [torch.nn.Parameter(torch.ones(1))]
    raised = []
    for cls in PAIRS[name]:
        with pytest.raises(error.error_type, match=error.error_regex) as caught:
            cls(params, **given.kwargs)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


@names
def test_signature(name: str) -> None:
    ours, theirs = (inspect.signature(cls).parameters for cls in PAIRS[name])
    own = [*PAIRS[name][0]._arguments, "norm_group"]
    assert list(ours) == [*theirs, *own]
    assert all(ours[argument].kind == inspect.Parameter.KEYWORD_ONLY for argument in own)
    for argument, parameter_ in theirs.items():
        assert ours[argument].default == parameter_.default
        assert ours[argument].kind == parameter_.kind


@names
def test_kind_and_groups(name: str) -> None:
    a, b = make(name)
    assert isinstance(a, PAIRS[name][1])
    assert type(a).__name__ == name
    assert a.defaults == b.defaults
    assert a.param_groups[0].keys() == b.param_groups[0].keys()


@names
def test_own_arguments_stand_where_they_were_set(name: str) -> None:
    """Checkpoints that name every key of a group pass between torch's classes and ours."""
    cls, plain = PAIRS[name][0], make(name)[1]
    own = {"max_grad_norm": 1.0, "ema_decay": None}  # the default is not set
    set_later = {"params": [torch.ones(2)], "l1": 0.5}
    a = cls([{"params": [torch.ones(3)]}, set_later], **own)
    first, second = (group.keys() - plain.param_groups[0].keys() for group in a.param_groups)
    assert (first, second) == ({"max_grad_norm"}, {"max_grad_norm", "l1"})


@inputs
def test_steps(name: str, kwargs: dict[str, Any]) -> None:
    a, b = make(name, **kwargs)
    for k in range(4):
        run(a, 1, seed=k)
        run(b, 1, seed=k)
        assert_close_state(a, b)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@names
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    a, b = make(name, dtype, lr=0.01)
    run(a, 3)
    run(b, 3)
    assert_close_state(a, b)


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("way", ["ours to torch", "torch to ours", "ours to ours"])
@inputs
def test_state_dict(name: str, kwargs: dict[str, Any], way: str) -> None:
    """Training goes on elsewhere from a checkpoint as if it had not been interrupted."""
    a, b = make(name, **kwargs)
    run(a, 2)
    run(b, 2)
    source, target = {"ours to torch": (a, make(name)[1]), "torch to ours": (b, make(name)[0])}.get(
        way, (a, make(name)[0])
    )
    run(target, 1, seed=77)  # so that there is a plan and state to be replaced
    with torch.no_grad():
        for p, q in zip(params_of(target), params_of(source), strict=True):
            p.copy_(q)
    target.load_state_dict(through_a_file(source.state_dict()))
    run(source, 2, seed=9)
    run(target, 2, seed=9)
    if way == "ours to ours":
        assert_same_state(target, source)
    ours, theirs = (target, source) if way == "torch to ours" else (source, target)
    assert_close_state(ours, theirs)


@names
def test_numbers_in_a_checkpoint_of_16_bits(name: str) -> None:
    """What parameters carry keeps its own type, which torch gives `step` alone when it loads."""
    (a, _), (b, _) = (make(name, torch.bfloat16) for _ in range(2))
    run(a, 2)
    with torch.no_grad():
        for p, q in zip(params_of(b), params_of(a), strict=True):
            p.copy_(q)
    b.load_state_dict(through_a_file(a.state_dict()))
    for _ in range(2):
        assert_same_state(b, a)
        for made in (a, b):
            run(made, 1, seed=9)


@names
def test_state_dict_is_laid_out_as_torchs(name: str) -> None:
    a, b = make(name)
    run(a, 1)
    run(b, 1)
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    assert mine["state"].keys() == theirs["state"].keys()
    assert mine["param_groups"][0]["params"] == theirs["param_groups"][0]["params"]


@names
def test_state_of_old_checkpoints(name: str) -> None:
    """Steps were once numbers, and an absent momentum buffer None."""
    a, b = make(name, **({"momentum": 0.9} if name == "SGD" else {}))
    for optimizer in (a, b):
        run(optimizer, 1)
        state = optimizer.state_dict()
        for entry in state["state"].values():
            if name == "SGD":
                entry["momentum_buffer"] = None
            elif "step" in entry:
                entry["step"] = float(entry["step"])
        optimizer.load_state_dict(state)
        run(optimizer, 2, seed=5)
    assert_close_state(a, b)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@inputs
def test_copies(name: str, kwargs: dict[str, Any], copied: Any) -> None:
    """A deep copy or a pickle goes on by itself: same bits, the original untouched."""
    a, _ = make(name, **kwargs)
    run(a, 2)
    b = copied(a)
    assert type(b) is type(a)
    assert_same_state(b, a)
    before = copy.deepcopy(a)
    run(b, 2, seed=9)
    assert_same_state(a, before)
    run(a, 2, seed=9)
    assert_same_state(a, b)


@names
def test_param_groups(name: str) -> None:
    """Groups with hyperparameters of their own; one is added between steps, with its own count."""
    made = []
    for cls in PAIRS[name]:
        p = [parameter(s, torch.float32, seed=i) for i, s in enumerate(SHAPES)]
        decays = "weight_decay" in inspect.signature(cls).parameters
        common = {"weight_decay": 0.1} if decays else {}
        optimizer = cls([{"params": p[:1], "lr": 0.1}, {"params": p[1:3]}], **common)
        run(optimizer, 2)
        optimizer.add_param_group({"params": p[3:], "lr": 0.5, "maximize": True})
        try:
            run(optimizer, 2, seed=3)
        except KeyError:
            assert cls is torch.optim.Adagrad
            pytest.skip("this torch's Adagrad makes no states for a group that is added")
        optimizer.param_groups[0]["lr"] = 0.3
        run(optimizer, 1, seed=5)
        made.append(optimizer)
    assert_close_state(*made)
    counts = [s["step"].item() for s in made[0].state.values() if "step" in s]
    assert counts in ([], [5, 5, 5, 3])


@names
def test_named_parameters(name: str) -> None:
    made = []
    for cls in PAIRS[name]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
        optimizer = cls(model.named_parameters(), lr=0.1)
        run(optimizer, 2)
        made.append(optimizer)
    assert_close_state(*made)
    a, b = (optimizer.state_dict()["param_groups"][0]["param_names"] for optimizer in made)
    assert a == b == ["0.weight", "0.bias", "1.weight", "1.bias"]


FLAGS = ["foreach", "fused", "capturable", "differentiable"]


@pytest.mark.parametrize("flags", [(f,) for f in FLAGS] + [("foreach", "fused")], ids=str)
@names
def test_flags(name: str, flags: tuple[str, ...]) -> None:
    """Each flag is accepted, or refused with the same words, as by torch's class."""
    ours, theirs = PAIRS[name]
    options = dict.fromkeys(flags, True)
    if "fused" in flags and "fused" in ours._arguments:
        theirs = torch.optim.Adam  # whose words an argument borrows that torch's class lacks
    raised, made = [], []
    for cls in (ours, theirs):
        try:
            made.append(cls([parameter((5,), torch.float32, 0)], **options))
        except (RuntimeError, TypeError) as error:
            raised.append((type(error), re.sub(r"^.*__init__", "__init__", str(error))))
    assert len(raised) in (0, 2)
    assert not raised or raised[0] == raised[1]
    if made and theirs is PAIRS[name][1] and "capturable" not in flags:  # torch: on accelerators
        for optimizer in made:
            p = params_of(optimizer)[0]
            for k in range(2):
                run_differentiable(optimizer, p, k)
        assert_close_state(*made)


def run_differentiable(optimizer: torch.optim.Optimizer, p: torch.Tensor, k: int) -> None:
    """Torch's differentiable step writes into leaves that need no gradient."""
    p.requires_grad_(not optimizer.param_groups[0]["differentiable"])
    p.grad = torch.full_like(p, 0.5 + k)
    optimizer.step()
