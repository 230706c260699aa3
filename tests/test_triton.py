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
from typing import Any, ClassVar

import pytest
import torch
from support import parameter
from test_passes import ALL

import fastopt
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


@needs_triton
def test_a_cpu_step_never_imports_triton() -> None:
    """Not by fastopt, that is: torch's own constructors import it, through torch._dynamo."""
    found = python(
        "-c",
        "import builtins, torch, fastopt\n"
        "do_import = builtins.__import__\n"
        "def watched(name, scope=None, *rest):\n"
        "    who = (scope or {}).get('__name__') or ''\n"
        "    if name.partition('.')[0] == 'triton' and who.partition('.')[0] == 'fastopt':\n"
        "        raise AssertionError(f'{who} imports {name}')\n"
        "    return do_import(name, scope, *rest)\n"
        "builtins.__import__ = watched\n"
        "p = torch.nn.Parameter(torch.ones(3)); p.grad = torch.ones(3)\n"
        "o = fastopt.Adam([p]); o.step(); fastopt.explain(o); print('stepped')\n"
        "import fastopt.backends.triton.kernel",
    )
    assert found.stdout == "stepped\n", found.stderr
    # and it would be seen
    assert "fastopt.backends.triton.kernel imports triton" in found.stderr


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
    """A few cases a target; `make codegen` does all of them."""
    found = python("tests/codegen.py", "--target", target, "--quick", "--jobs", "1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert " 0 with faults" in found.stdout


@needs_triton
def test_codegen_finds_faults() -> None:
    """The check can fail: without the promise of alignment no access is 128 bits wide."""
    found = python(
        "-c",
        "import codegen\n"
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
        PYTHONPATH=str(HERE),
    )
    assert found.returncode == 0, found.stderr
    cuda, hip = found.stdout.splitlines()
    assert "0 loads of 128 bits, expected 12" in cuda
    assert "inexact arithmetic" in cuda
    assert "0 stores of 128 bits, expected 8" in hip


class AbsentGPU:
    """Triton's driver of a GPU that is not here: kernels are compiled for it, a launch is noted."""

    launched: ClassVar[list[str]] = []  # everybody's: Triton keeps the launchers it was given

    class utils:
        get_device_properties = staticmethod(lambda device: {"max_shared_mem": 1 << 16})
        load_binary = staticmethod(lambda *_: (object(), None, 0, 0, 1024))

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *_: self.launched.append(source.name)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def absent_gpu(monkeypatch: pytest.MonkeyPatch) -> AbsentGPU:
    """CPU tensors step as those on a GPU do, up to and without what a kernel does."""
    from triton.runtime import driver

    gpu = AbsentGPU()
    gpu.launched.clear()
    monkeypatch.setattr(driver, "_active", gpu)
    monkeypatch.setenv("FASTOPT_BACKEND", "triton")
    monkeypatch.setattr(triton, "interpreted", lambda: True)  # so that CPU tensors are taken
    return gpu


@needs_triton
def test_the_bytes_that_a_gpu_must_have_under_way(
    absent_gpu: AbsentGPU, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what its driver says: here what H100's data sheet does."""
    from fastopt.backends.triton import tiles

    about = {"mem_clock_rate": 2_619_000, "mem_bus_width": 5120, "multiprocessor_count": 132}
    monkeypatch.setattr(absent_gpu.utils, "get_device_properties", lambda device: about)
    found = tiles.target(torch.device("cuda", 0))
    assert found[:2] == ("cuda", 32)
    assert found.bytes_needed == pytest.approx(3.35e12 * 1e-6 / 132, rel=1e-3)


def with_gradient(name: str, dtype: torch.dtype = torch.float32) -> tuple[str, torch.nn.Parameter]:
    p = parameter((3,), torch.float32, seed=0)
    p.grad_dtype = dtype
    p.grad = torch.ones(3, dtype=dtype)
    return name, p


@needs_triton
@pytest.mark.parametrize("cls", [fastopt.SGD, fastopt.AdamW, fastopt.RMSprop])
@pytest.mark.parametrize("scaled", [False, True])
def test_every_kernel_compiles_and_is_launched(
    cls: Any, scaled: bool, absent_gpu: AbsentGPU
) -> None:
    """In order, through the call that a machine with a GPU makes; one launch per combination of
    dtypes.
    """
    for own, norm in (({}, []), (ALL, ["square_sums"] * 2 + ["finish_norm"])):
        made = cls([with_gradient("weight"), with_gradient("bias", torch.bfloat16)], **own)
        if scaled:
            made.grad_scale, made.found_inf = torch.ones(()), torch.zeros(())
        absent_gpu.launched.clear()
        made.step()
        counted = ["count_steps"] * bool(scaled or norm)
        assert absent_gpu.launched == [*norm, *([*counted, "multi_tensor"] * 2)]


@needs_triton
def test_a_kernel_that_does_not_compile(
    monkeypatch: pytest.MonkeyPatch, absent_gpu: AbsentGPU
) -> None:
    from broken_rule import broken

    from fastopt.backends.triton.rules import RULES

    monkeypatch.setitem(RULES, "sgd", RULES["sgd"]._replace(update=broken))
    made = fastopt.SGD([with_gradient("weight")], momentum=0.9)
    (p,) = made.param_groups[0]["params"]
    before = p.detach().clone()
    with pytest.raises(RuntimeError) as caught:
        made.step()
    message = str(caught.value)
    assert "parameter 'weight' (param_groups[0]['params'][0]): Triton " in message
    assert "cannot compile multi_tensor of the rule 'sgd' in torch.float32 for cuda 90" in message
    assert "nowhere_defined" in message
    assert "set FASTOPT_BACKEND=torch" in message
    assert torch.equal(p, before)
    assert (made.state, absent_gpu.launched) == ({}, [])


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_gpu_suite_without_a_gpu() -> None:
    commands = [["-m", "benchmarks", kind] for kind in ("gpu", "tuning")]
    for command in (*commands, [str(HERE / "codegen.py"), "--target", "native"]):
        found = python(*command)
        assert found.returncode != 0
        assert "needs a GPU" in found.stdout + found.stderr


@pytest.mark.parametrize("timed", ["device", "host"])
def test_the_gpu_suites_rows(timed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row can be built, checked and raced: here, small CPU tensors and the CPU's clock."""
    from benchmarks import gpu, method

    torch.set_num_threads(1)
    monkeypatch.setattr(gpu, "CLOCKS", {timed: method.timed})
    rows = [dataclasses.replace(r, timing=timed) for r in gpu.ROWS if r.timing in (timed, "graph")]
    found = [{"id": row.id, **gpu.run_row(row, method.QUICK, "cpu")} for row in rows]
    for row in found:
        assert (row["verdict"], row["wrong"]) == ("right", [])
        assert row["errors"]["fastopt"] > 0
        assert row["samples"].keys() >= {"fastopt", "floor"}
    shown = gpu.table({"rows": found})
    assert list(shown["groups"]) == [str(row.groups) for row in rows]


@pytest.mark.parametrize("index", [0, 5])
def test_the_tunings_rows(index: int) -> None:
    """In whole tensors and in bytes; on CPU tensors, so that the tile is changed and never seen."""
    from benchmarks import method, tuning
    from fastopt.backends.triton import tiles

    usual = {**tiles.TILES}, {**tiles.COMPACT_TILES}
    row = tuning.ROWS[index]
    found = {"id": row.id, **tuning.run_row(row, method.QUICK, "cpu", method.timed)}
    assert (found["verdict"], found["wrong"], found["absent"]) == ("right", [], {})
    assert len(found["samples"]) == 2 + len(tuning.WARPS) * len(tuning.BYTES)
    assert usual == ({**tiles.TILES}, {**tiles.COMPACT_TILES})
    shown = tuning.table({"rows": [found]})
    assert shown["quickest"][0] == found["best"]


def test_the_gpu_suite_says_what_is_not_in_parity(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import gpu

    monkeypatch.setattr(gpu, "PARITY", HERE / "nothing.py")
    (found,) = gpu.parity("cuda:0")
    assert "exit code 2" in found["error"]
