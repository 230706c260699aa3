"""The paths a parameter can take and what explain() says of each: FASTOPT_BACKEND, flags, sparse
gradients, lazy views, devices, optimizers of others, the instruction set.
"""

from __future__ import annotations

import inspect
import os
import re
from typing import Any

import pytest
import torch
from support import (
    BACKEND,
    ON_TRITON,
    Optimizer,
    assert_close_state,
    assert_same_bits,
    assert_same_state,
    parameter,
    params_of,
    run,
)

import fastopt
from fastopt import _core

pytestmark = pytest.mark.parity


def paths(optimizer: torch.optim.Optimizer) -> list[tuple[str, int]]:
    return [(bucket.path, bucket.tensors) for bucket in fastopt.explain(optimizer).buckets]


def reasons(optimizer: torch.optim.Optimizer) -> str:
    return " | ".join(bucket.reason for bucket in fastopt.explain(optimizer).buckets)


def two(cls: Any, **hyper: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = cls(
        [parameter((4, 3), torch.float32, seed=i) for i in range(2)], **hyper
    )
    return made


@pytest.mark.engine_only("instruction sets")
def test_engine(optimizer: Optimizer, isa: str) -> None:
    ours = two(optimizer.ours)
    begun = {p: dict(state) for p, state in ours.state.items()}
    explanation = fastopt.explain(ours)
    (bucket,) = explanation.buckets
    assert (bucket.path, bucket.device, bucket.dtype) == ("cpu", "cpu", "float32")
    assert (bucket.tensors, bucket.elements) == (2, 24)
    assert isa in bucket.reason
    text = str(explanation)
    assert text.startswith(type(ours).__name__ + ":")
    assert "2 tensors, 24 elements, float32 on cpu" in text
    assert ours.state == begun  # explaining changes nothing


def test_buckets(optimizer: Optimizer) -> None:
    """One bucket per path, reason, device and dtype, in the order of the parameters."""
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.complex64]
    params = [parameter((3,), dtype, seed=i) for i, dtype in enumerate(dtypes)]
    buckets = fastopt.explain(optimizer.ours(params)).buckets
    assert [(b.dtype, b.tensors) for b in buckets] == [
        ("float32", 2),
        ("bfloat16", 1),
        ("complex64", 1),
    ]


def test_backend_torch(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """FASTOPT_BACKEND=torch: torch's own step, to the last bit."""
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    a, b = two(optimizer.ours), two(optimizer.theirs)
    run(a, 3)
    run(b, 3)
    for p, q in zip(params_of(a), params_of(b), strict=True):
        assert_same_bits(p, q)
    assert paths(a) == [("torch", 2)]
    assert "FASTOPT_BACKEND=torch" in reasons(a)
    monkeypatch.setenv("FASTOPT_BACKEND", "cpu")
    a.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))]})
    assert paths(a) == [("cpu", 3)]


def test_backend_is_read_when_planning(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "gpu")
    ours = two(optimizer.ours)
    with pytest.raises(ValueError, match=r"FASTOPT_BACKEND is 'gpu'; allowed: auto, cpu,.* torch"):
        run(ours, 1)
    with pytest.raises(ValueError, match="FASTOPT_BACKEND is 'gpu'"):
        fastopt.explain(ours)


@pytest.mark.parametrize("flag", ["differentiable", "capturable"])
def test_flags(optimizer: Optimizer, flag: str) -> None:
    if flag not in optimizer.theirs([torch.ones(1)]).defaults:
        pytest.skip(f"{optimizer.name} has no {flag}")
    ours = two(optimizer.ours, **{flag: True})
    if flag == "capturable" and ON_TRITON:
        assert paths(ours) == [("triton", 2)]
    else:
        assert paths(ours) == [("torch", 2)]
        assert f"{flag}=True" in reasons(ours)


def changed(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> tuple[Any, list[tuple[str, Any]]]:
    """An optimizer with a plan, and what to set in its group or the environment to change it."""
    ours = two(optimizer.ours)
    if kind == "FASTOPT_BACKEND":
        there = os.environ.get(kind, "auto")
        return ours, [(kind, "torch"), (kind, there), (kind, "torch"), (kind, there)]
    if kind not in ours.param_groups[0]:
        pytest.skip(f"{optimizer.name} has no {kind}")
    return ours, [(kind, True), (kind, False), (kind, True), (kind, False)]


@pytest.mark.parametrize("kind", ["FASTOPT_BACKEND", "differentiable", "capturable"])
def test_a_step_goes_the_way_that_explain_tells(
    optimizer: Optimizer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the way has changed since the last step; so do steps that follow it."""
    ours, changes = changed(optimizer, monkeypatch, kind)
    for p in params_of(ours):
        p.requires_grad_(False)  # torch's differentiable step writes into it
    run(ours, 2)
    took: list[str] = []
    theirs = optimizer.theirs.step

    def spy(self: Any, *args: Any) -> Any:
        took.append("torch")
        return theirs(self, *args)

    spy.hooked = True  # type: ignore[attr-defined]  # as torch's own step is, once it is wrapped
    spy.__wrapped__ = getattr(theirs, "__wrapped__", theirs)  # type: ignore[attr-defined]
    unwrapped = spy.__wrapped__  # type: ignore[attr-defined]

    def inner(self: Any, *args: Any) -> Any:
        took.append("torch")
        return unwrapped(self, *args)

    spy.__wrapped__ = inner  # type: ignore[attr-defined]
    monkeypatch.setattr(optimizer.theirs, "step", spy)
    ways = set()
    for name, value in changes:
        if name == "FASTOPT_BACKEND":
            monkeypatch.setenv(name, value)
        else:
            ours.param_groups[0][name] = value
        for _ in range(2):
            (way,) = {path for path, _ in paths(ours)}
            took.clear()
            if way == "torch" and kind == "capturable":  # torch's own runs on accelerators alone
                with pytest.raises(AssertionError, match="capturable=True"):
                    run(ours, 1)
            else:
                run(ours, 1)
            assert took == ["torch"] * (way == "torch")
            ways.add(way)
    assert ways == ({BACKEND, "torch"} if (kind, ON_TRITON) != ("capturable", True) else {BACKEND})


@pytest.mark.engine_only("Triton's interpreter takes no other device either")
def test_a_parameter_that_the_engine_comes_to_take(optimizer: Optimizer) -> None:
    """The reason for torch's path may lie in the parameter's memory, which may be replaced."""
    p = torch.nn.Parameter(torch.complex(torch.ones(3), torch.ones(3)).conj().imag)
    assert p.is_neg()
    ours = optimizer.ours([p])
    for way in ("torch", "torch", "cpu", "cpu"):
        if way == "cpu" and p.is_neg():
            p.data = p.detach().resolve_neg()
        p.grad = torch.ones(3)
        assert paths(ours) == [(way, 1)]
        ours.step()
        assert {r.backend for r in ours._record.last.routes} == {way}  # type: ignore[attr-defined]


def test_a_group_of_each(optimizer: Optimizer) -> None:
    """One group differentiable, one not: each goes its way in one step."""
    made = []
    for cls in (optimizer.ours, optimizer.theirs):
        params = [parameter((4,), torch.float32, seed=i) for i in range(2)]
        params[0].requires_grad_(False)  # torch's differentiable step writes into it
        made.append(cls([{"params": params[:1], "differentiable": True}, {"params": params[1:]}]))
        for k in range(3):
            for p in params:
                p.grad = torch.full_like(p, 1.0 + k)
            made[-1].step()
    assert paths(made[0]) == [("torch", 1), (BACKEND, 1)]
    assert_close_state(*made)


def sparse_problem(cls: Any, **hyper: Any) -> tuple[torch.optim.Optimizer, Any]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(10, 3, sparse=True), torch.nn.Linear(3, 2))
    return cls(model.named_parameters(), lr=0.1, **hyper), model


@pytest.mark.parametrize("hyper", [{}, {"momentum": 0.9}], ids=str)
def test_sparse_sgd(hyper: dict[str, Any]) -> None:
    """SGD's sparse gradients take torch's own step, the dense ones beside them the engine's."""
    made = []
    for cls in (fastopt.SGD, torch.optim.SGD):
        ours, model = sparse_problem(cls, **hyper)
        for k in range(4):
            ours.zero_grad()
            model(torch.tensor([[1, 4], [4, k]])).sum().backward()
            if cls is fastopt.SGD:
                assert paths(ours) == [("torch", 1), (BACKEND, 2)]
                assert "sparse" in reasons(ours)
            ours.step()
        made.append(ours)
    for p, q in zip(params_of(made[0]), params_of(made[1]), strict=True):
        torch.testing.assert_close(p, q)


def test_sparse_and_dense_in_turn() -> None:
    """Whether a gradient is sparse can change from step to step."""
    made = []
    for cls in (fastopt.SGD, torch.optim.SGD):
        p = parameter((6, 2), torch.float32, seed=0)
        made.append(cls([p], lr=0.1))
        for k in range(6):
            dense = torch.zeros(6, 2)
            dense[k] = 1.0
            p.grad = dense.to_sparse(1) if k % 2 else dense
            made[-1].step()
    assert_close_state(*made)


@pytest.mark.parametrize("cls", [fastopt.Adam, fastopt.AdamW, fastopt.RMSprop])
def test_sparse_is_refused(cls: Any) -> None:
    """With the parameter's name, before any of its neighbours is written."""
    ours, model = sparse_problem(cls)
    model(torch.tensor([1, 2])).sum().backward()
    before = [p.detach().clone() for p in params_of(ours)]
    for act in (ours.step, lambda: fastopt.explain(ours)):
        with pytest.raises(RuntimeError, match=r"sparse gradients: parameter '0\.weight'"):
            act()
    for p, q in zip(params_of(ours), before, strict=True):
        assert_same_bits(p, q)
    assert not ours.state


def test_negative_views(optimizer: Optimizer) -> None:
    """A gradient whose memory holds the negative of its values, in turn with plain ones."""
    made = []
    for cls in (optimizer.ours, optimizer.theirs):
        p, q = (parameter((5,), torch.float32, seed=i) for i in (0, 1))
        made.append(cls([p, q], lr=0.1))
        for k in range(4):
            p.grad = q.grad = torch.arange(5.0) + k
            if k % 2:
                p.grad = torch.complex(torch.ones(5), torch.arange(5.0) + k).conj().imag
                assert p.grad.is_neg()
            made[-1].step()
    assert_close_state(*made)


def test_conjugate_views(optimizer: Optimizer) -> None:
    """A lazily conjugated gradient, which of torch's own only SGD takes, counts by its values."""
    made = []
    for lazy in (True, False):
        params = [parameter((5,), torch.complex64, seed=i) for i in (0, 1)]
        made.append(optimizer.ours(params, lr=0.1))
        for k in range(4):
            g = torch.complex(torch.arange(5.0), torch.ones(5) + k)
            params[0].grad = g
            params[1].grad = g.conj() if k % 2 else g.clone()
            assert params[1].grad.is_conj() == bool(k % 2)
            if not lazy:
                params[1].grad = params[1].grad.resolve_conj()
            made[-1].step()
            assert torch.equal(params[1].grad, g.conj() if k % 2 else g)
    assert_same_state(*made)


@pytest.mark.parametrize("own", [{"max_grad_norm": 0.5}, {"max_grad_value": 0.5}, {"l1": 0.1}])
def test_passes_over_lazy_views_on_torchs_path(
    optimizer: Optimizer, own: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's passes read a lazily conjugated gradient by its values, as the engine's do."""
    monkeypatch.setenv("FASTOPT_BACKEND", "torch")
    made = []
    for lazy in (True, False):
        p = parameter((5,), torch.complex64, seed=0)
        made.append(optimizer.ours([p], lr=0.1, track_stats=True, **own))
        p.grad = torch.complex(torch.arange(5.0), torch.ones(5)).conj()
        if not lazy:
            p.grad = p.grad.resolve_conj()
        made[-1].step()
    assert_close_state(*made)
    a, b = (list(one.stats()["0.0"].values()) for one in made)
    assert a == pytest.approx(b)


def test_meta_device(optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device without backend takes torch's own step; ASGD's refuses it."""
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    ours = optimizer.ours([p])
    p.grad = torch.empty(3, device="meta")
    assert paths(ours) == [("torch", 1)]
    assert "meta" in reasons(ours)
    try:
        optimizer.theirs([p]).step()
    except RuntimeError as refused:
        with pytest.raises(RuntimeError, match=re.escape(str(refused))):
            ours.step()
    else:
        ours.step()


def test_fused_on_a_device_without_fused_kernels(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch's words: in Adam's of classes that in torch have no such argument."""
    monkeypatch.delenv("FASTOPT_BACKEND", raising=False)
    has_fused = "fused" in inspect.signature(optimizer.theirs).parameters
    errors = []
    for cls in (optimizer.ours, optimizer.theirs if has_fused else torch.optim.Adam):
        p = torch.nn.Parameter(torch.empty(3, device="meta"))
        made = cls([p], fused=True)
        p.grad = torch.empty(3, device="meta")
        with pytest.raises(RuntimeError) as caught:
            made.step()
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "`fused=True` requires all the params to be floating point" in errors[0]


def test_meta_device_with_backend_cpu(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "cpu")
    q = parameter((3,), torch.float32, seed=0)
    q.grad = torch.ones(3)
    before = q.detach().clone()
    p = torch.nn.Parameter(torch.empty(3, device="meta"))
    p.grad = torch.empty(3, device="meta")
    ours = optimizer.ours([("bias", q), ("ghost", p)])
    with pytest.raises(RuntimeError, match=r"parameter 'ghost' .* is on meta"):
        ours.step()
    assert_same_bits(q, before)


def test_optimizers_of_others() -> None:
    other = two(torch.optim.Adagrad)
    assert paths(other) == [("torch", 2)]
    assert "Adagrad is not fastopt's" in reasons(other)


def test_select_isa() -> None:
    with pytest.raises(ValueError, match=r"this processor can run: .*baseline"):
        _core.select_isa("mmx")
    assert _core.isa() in _core.supported_isas()
