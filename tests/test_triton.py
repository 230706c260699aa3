"""The Triton backend without a GPU and without its interpreter: imports, settings, compiling before
anything is written, codegen. What it computes: the parity suite (see conftest.py).
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support import parameter
from test_passes import ALL

import fastopt
from fastopt import stepping
from fastopt.backends import triton

HERE = Path(__file__).parent
INTERPRETED = {"TRITON_INTERPRET": "1", "FASTOPT_BACKEND": "triton"}
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in INTERPRETED}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parent,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_a_cpu_step_never_imports_triton() -> None:
    """Not by fastopt, that is: torch's own constructors import it, through torch._dynamo."""
    found = python(
        "-c",
        "import sys, torch, fastopt\n"
        "p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)\n"
        "o = fastopt.Adam([p]); o.step(); fastopt.explain(o)\n"
        "ours = {m for m in sys.modules if m.startswith('fastopt.backends.triton.')}\n"
        "assert ours == {'fastopt.backends.triton.slots'}, ours",
    )
    assert found.returncode == 0, found.stderr


@needs_triton
def test_forced_on_the_cpu_without_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """One clear error that names the parameter and the remedy; nothing has been written."""
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    p = parameter((3,), torch.float32, seed=0)
    p.grad = torch.ones(3)
    before = p.detach().clone()
    made = fastopt.Adam([("weight", p)])
    with pytest.raises(RuntimeError, match=r"'weight' .*is on cpu: .*TRITON_INTERPRET=1"):
        made.step()
    assert torch.equal(p, before)
    assert not made.state


def test_forced_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    monkeypatch.setattr(triton, "missing", lambda: "Triton is not installed (pip install triton)")
    made = fastopt.SGD([parameter((3,), torch.float32, seed=0)])
    with pytest.raises(RuntimeError, match="pip install triton"):
        fastopt.explain(made)


def test_a_gpu_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its parameters take torch's step, and the reason says so."""
    from fastopt import routes

    monkeypatch.setattr(triton, "missing", lambda: "Triton is not installed (pip install triton)")
    made = fastopt.SGD([parameter((3,), torch.float32, seed=0)])
    _, reason = routes.backend_for(made, "auto", torch.device("cuda:0"), 0)
    assert reason == "Triton is not installed (pip install triton)"
    assert routes.backend_for(made, "auto", torch.device("cpu"), 0) == ("cpu", "")


@needs_triton
def test_a_rule_without_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that only the compiled engine knows takes torch's step on a GPU, and the reason says
    so; forced, it is an error that names the parameter.
    """
    from fastopt import routes
    from fastopt.backends.triton.rules import RULES

    monkeypatch.setattr(triton, "interpreted", lambda: False)
    made = fastopt.SGD([parameter((3,), torch.float32, seed=0)])
    gpu = torch.device("cuda:0")
    assert routes.backend_for(made, "auto", gpu, 0) == ("triton", "")
    monkeypatch.delitem(RULES, "sgd")
    _, reason = routes.backend_for(made, "auto", gpu, 0)
    assert reason == "no Triton kernel has the rule 'sgd'"
    assert routes.backend_for(made, "auto", torch.device("cpu"), 0) == ("cpu", "")
    with pytest.raises(RuntimeError, match=r"param_groups\[0\].* no Triton kernel has the rule"):
        routes.backend_for(made, "triton", gpu, 0)


@needs_triton
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_codegen(target: str) -> None:
    """A few cases a target; `python -m benchmarks codegen` does all of them."""
    found = python("-m", "benchmarks", "codegen", "--target", target, "--quick", "--jobs", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert " 0 with faults" in found.stdout


@needs_triton
def test_codegen_finds_faults() -> None:
    """The check can fail: without the promise of alignment no access is 128 bits wide."""
    found = python(
        "-c",
        "from benchmarks import codegen\n"
        "compile_case = codegen.compile_case\n"
        "def narrow(case):\n"
        "    compiled = compile_case(case)\n"
        "    for name in ('ptx', 'amdgcn'):\n"
        "        if name in compiled.asm:\n"
        "            text = compiled.asm[name].replace('.v4.b32', '.b32').replace('.rn.', '.')\n"
        "            compiled.asm[name] = text.replace('dwordx4', 'dword')\n"
        "    return compiled\n"
        "codegen.compile_case = narrow\n"
        "for target in codegen.TARGETS[1], codegen.TARGETS[3]:\n"
        "    code = codegen.inspect(codegen.Case(target, 'sgd', 1, 'fp32'))\n"
        "    print(*code.faults, sep='; ')",
    )
    assert found.returncode == 0, found.stderr
    cuda, hip = found.stdout.splitlines()
    assert "0 loads of 128 bits, expected 12" in cuda
    assert "inexact arithmetic" in cuda
    assert "0 stores of 128 bits, expected 8" in hip


class AbsentGPU:
    """Triton's driver of a GPU that is not here: kernels are compiled for it and loaded nowhere."""

    launcher_cls = staticmethod(lambda source, metadata: None)

    class utils:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 1 << 16})
        load_binary = staticmethod(lambda *_: (object(), None, 0, 0, 1024))

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def absent_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import driver

    monkeypatch.setattr(driver, "_active", AbsentGPU())


def check_a_launch(made: torch.optim.Optimizer, scaler: stepping.Scaler) -> None:
    """What a step does before it writes: plan, collect, compile."""
    from fastopt import plan
    from fastopt.backends.triton.launch import Launch

    routes = [plan.Route("triton", "")] * sum(len(g["params"]) for g in made.param_groups)
    new = plan.create_states(made, routes)
    new.store(made)
    launch = Launch(
        made,
        made._rule,
        range(len(routes)),
        new.fresh,
        new.new_averages,
        scaler,
        made.param_groups,
        made._record.skips_on,
    )
    launch.check(made, scaler)


def with_gradient(name: str, dtype: torch.dtype = torch.float32) -> tuple[str, torch.nn.Parameter]:
    p = parameter((3,), torch.float32, seed=0)
    p.grad_dtype = dtype
    p.grad = torch.ones(3, dtype=dtype)
    return name, p


@needs_triton
@pytest.mark.parametrize("cls", [fastopt.SGD, fastopt.AdamW, fastopt.RMSprop])
@pytest.mark.usefixtures("absent_gpu")
def test_a_launch_compiles_before_it_writes(cls: Any) -> None:
    """All kernels, through the call that a machine with a GPU makes."""
    for scaler in (stepping.Scaler(), stepping.Scaler(torch.zeros(()), torch.ones(()))):
        for own in ({}, ALL):
            params = [with_gradient("weight"), with_gradient("bias", torch.bfloat16)]
            check_a_launch(cls(params, **own), scaler)


@needs_triton
@pytest.mark.usefixtures("absent_gpu")
def test_a_kernel_that_does_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    from broken_rule import broken

    from fastopt import plan
    from fastopt.backends.triton.rules import RULES
    from fastopt.stepping import Changed

    monkeypatch.setitem(RULES, "sgd", RULES["sgd"]._replace(update=broken))
    made = fastopt.SGD([with_gradient("weight")], momentum=0.9)
    (p,) = made.param_groups[0]["params"]
    before = p.detach().clone()
    with pytest.raises(Changed) as caught:
        check_a_launch(made, stepping.Scaler())
    message = str(plan.refusal(made, caught.value.index, str(caught.value)))
    assert "parameter 'weight' (param_groups[0]['params'][0]): Triton " in message
    assert "cannot compile multi_tensor of the rule 'sgd' in torch.float32 for cuda 90" in message
    assert "nowhere_defined" in message
    assert "set FASTOPT_BACKEND=torch" in message
    assert torch.equal(p, before)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_gpu_suite_without_a_gpu() -> None:
    found = python("-m", "benchmarks", "gpu")
    assert found.returncode != 0
    assert "needs a GPU" in found.stdout + found.stderr


def test_rows_of_the_gpu_suite() -> None:
    """What follows from samples: ratio, share of the copy's bandwidth, verdict."""
    from benchmarks import gpu

    work = gpu.Work("64M", "SGD", [(1 << 26,)], 5, {}, gpu.FUSED, 1.5, 0.9)
    samples = {"fastopt": [1.0, 1.0, 1.0], "peer": [2.0, 2.0, 2.0], "copy": [0.5, 0.5, 0.5]}
    row = gpu.assess(work, samples, moved=1000, copied=500)
    assert (row["ratio"]["median"], row["bandwidth"], row["verdict"]) == (2.0, 1.0, "ok")
    assert gpu.assess(work, samples, moved=800, copied=500)["verdict"] == "short"
    slow = {**samples, "fastopt": [1.5, 1.5, 1.5]}
    assert gpu.assess(work, slow, moved=2000, copied=500)["verdict"] == "short"


@pytest.mark.parametrize("work", range(9))
def test_the_gpu_suites_works(work: int) -> None:
    """Every row can be built and stepped by fastopt and by its peer: here, small CPU tensors."""
    from benchmarks import gpu

    row = gpu.WORKS[work]
    small = dataclasses.replace(row, shapes=[(3,)] * min(len(row.shapes), 200))
    options = {k: v for k, v in small.options.items() if k != "capturable"}  # a GPU's
    small = dataclasses.replace(small, options=options)
    for module, flags in ((fastopt, small.passes), (torch.optim, small.peer)):
        made, params = gpu.build(module, small, torch.device("cpu"), **flags)
        before = [p.detach().clone() for p in params]
        made.step()
        assert not any(torch.equal(p, q) for p, q in zip(params, before, strict=True))
        assert len(made.param_groups) == row.groups
