"""Importing in a fresh interpreter: what is loaded, what a wrong environment says, a missing core,
`python -m fastopt`.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch

import fastopt
from fastopt import _core


def python(
    *arguments: str, cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_an_import_loads() -> None:
    """Of other packages only what `import torch` has loaded: no Triton, no dynamo, no inductor.

    That is what keeps the import under 50 ms, which depends on the machine and is no test.
    """
    found = python(
        "-c",
        "import sys, torch; before = set(sys.modules); import fastopt;"
        "print(*sorted(set(sys.modules) - before))",
    )
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    new = found.stdout.split()
    assert "fastopt._core" in new
    light = {"fastopt", "numpy", *sys.stdlib_module_names}
    assert [name for name in new if name.split(".")[0] not in light] == []


def test_warnings_are_none() -> None:
    found = python("-W", "error", "-c", "import fastopt; fastopt.SGD")
    # torch itself may warn while it is imported; fastopt must not add to that.
    alone = python("-W", "error", "-c", "import torch")
    assert found.returncode == alone.returncode
    assert found.stderr.count("Error") == alone.stderr.count("Error")


@pytest.mark.parametrize("isa", _core.supported_isas())
def test_forced_isa(isa: str) -> None:
    found = python("-c", "from fastopt import _core; print(_core.isa())", FASTOPT_ISA=isa)
    assert (found.returncode, found.stdout.strip()) == (0, isa), found.stderr


@pytest.mark.parametrize("isa", ["sse9", "AVX2", "avx2 ", "neon,avx2"])
def test_wrong_isa(isa: str) -> None:
    """Said on import, with what is allowed here and how to mend it."""
    found = python("-c", "import fastopt", FASTOPT_ISA=isa)
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert f"FASTOPT_ISA is '{isa}'" in last
    for allowed in _core.supported_isas():
        assert allowed in last
    assert "Unset it" in last


def test_best_isa_by_default() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "FASTOPT_ISA"}
    found = subprocess.run(
        [sys.executable, "-c", "from fastopt import _core; print(_core.isa())"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == _core.supported_isas()[0]


def test_python_m_fastopt() -> None:
    """What was detected and chosen, one line each."""
    found = python("-m", "fastopt", FASTOPT_ISA="baseline" if on_x86() else "", OMP_NUM_THREADS="1")
    assert found.returncode == 0, found.stderr
    text = found.stdout
    assert f"fastopt {fastopt.__version__}" in text
    assert f"torch {torch.__version__}" in text
    assert f"can run: {', '.join(_core.supported_isas())}" in text
    assert "threads: 1" in text
    assert "backend: auto" in text
    for cls in fastopt.optim.CLASSES:
        assert f"{cls.__name__}: " in text
    if on_x86():
        assert "instruction set: baseline" in text


def on_x86() -> bool:
    return "baseline" in _core.supported_isas()


def test_python_m_fastopt_with_a_wrong_backend() -> None:
    found = python("-m", "fastopt", FASTOPT_BACKEND="gpu")
    assert found.returncode != 0
    assert "FASTOPT_BACKEND is 'gpu'; allowed: auto" in found.stderr


@pytest.mark.parametrize("core", ["missing", "foreign"])
def test_a_core_that_does_not_load(core: str, tmp_path: Path) -> None:
    """A copy of the package without its core, or with a file that is not one: said on import."""
    package = tmp_path / "fastopt"
    here = Path(fastopt.__file__).parent
    for file in here.rglob("*.py"):
        target = package / file.relative_to(here)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(file.read_text())
    if core == "foreign":
        (package / Path(_core.__file__).name).write_text("not for this processor")
    # -S: an editable install hooks the import of fastopt, wherever the path leads.
    found_by = [str(tmp_path), *(part for part in sys.path if part.endswith("site-packages"))]
    path = os.pathsep.join(found_by)
    found = python("-S", "-c", "import fastopt", cwd=tmp_path, PYTHONPATH=path)
    assert found.returncode != 0
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: fastopt's compiled core does not load here")
    assert torch.__version__ in last
    assert "torch >= 2.10" in last
    assert "pip install --force-reinstall fastopt" in last


def imported(module: str, file: Path, modules: set[str]) -> set[str]:
    """Those of `modules` that a file imports, wherever in it, also for types only."""
    names: set[str] = set()
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            origin = ".".join([*parents * bool(node.level), *filter(None, [node.module])])
            parts = {f"{origin}.{alias.name}" for alias in node.names}
            # Of a package, modules or what it defines itself.
            names |= parts if parts <= modules else parts | {origin}
    return names & modules


def test_imports_run_one_way() -> None:
    """No circle, typing included."""
    root = Path(fastopt.__file__).parent
    files = {
        ".".join(["fastopt", *file.relative_to(root).with_suffix("").parts]).removesuffix(
            ".__init__"
        ): file
        for file in root.rglob("*.py")
    }
    modules = {*files, _core.__name__}
    graph = {name: imported(name, file, modules) for name, file in files.items()}
    assert graph["fastopt.plan"] >= {"fastopt.routes", "fastopt.backends.triton.launch"}
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_public_names() -> None:
    assert set(fastopt.__all__) >= {"SGD", "Adam", "AdamW", "RMSprop", "explain", "functional"}
    assert all(hasattr(fastopt, name) for name in fastopt.__all__)
    assert (Path(fastopt.__file__).parent / "py.typed").exists()
