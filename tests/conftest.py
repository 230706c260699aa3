"""Discovered cases as parameters, then the settings of torch and the engine put back.

`pytest -m parity` under FASTOPT_BACKEND=triton and TRITON_INTERPRET=1 runs the parity suite on the
Triton backend, on CPU tensors; `make test` does so after everything else. Of large products of
cases, dtypes and options one in ONE_IN is run, with FASTOPT_TESTS=all every one.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support import ON_TRITON, UNITS, Case, discover

from fastopt import _core

# Large: more tests of one function than so many an optimizer. Of those as many are run however many
# optimizers there are; their names' hashes choose, so that every case, dtype and option is in some.
LARGE, ONE_IN = (1, len(discover()) // 2) if ON_TRITON else (3, len(discover()) // 3)

# Modules that ask for the references' bits over numbers of all sizes, infinities among them.
BITS = ("test_reference", "test_properties", "test_torch", "test_compact")

if ON_TRITON:
    import interpreter

    interpreter.look_once()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    optimizers = getattr(metafunc.module, "UNDER_TEST", discover())  # a module may test fewer
    cases = [Case(optimizer, variant) for optimizer in optimizers for variant in optimizer.variants]
    more = [
        Case(optimizer, variant) for optimizer in optimizers for variant in optimizer.extensions
    ]
    if "optimizer" in metafunc.fixturenames:
        metafunc.parametrize("optimizer", optimizers, ids=str)
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", cases, ids=str)
    if "any_case" in metafunc.fixturenames:  # also those that torch does not have
        metafunc.parametrize("any_case", cases + more, ids=str)


def thin(config: pytest.Config, items: list[pytest.Item]) -> None:
    functions = Counter(item.nodeid.split("[")[0] for item in items)
    many = LARGE * len(discover())

    def is_left_out(item: pytest.Item) -> bool:
        name = item.nodeid.split("[")[0]
        return functions[name] > many and zlib.crc32(item.nodeid.encode()) % ONE_IN != 0

    config.hook.pytest_deselected(items=[*filter(is_left_out, items)])
    items[:] = [item for item in items if not is_left_out(item)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get("FASTOPT_TESTS") != "all":
        thin(config, items)
    for item in items:
        engine_only = item.get_closest_marker("engine_only")
        if ON_TRITON and engine_only:
            item.add_marker(pytest.mark.skip(reason=f"the CPU engine's: {engine_only.args[0]}"))
        if UNITS and item.path.stem in BITS:
            item.add_marker(pytest.mark.skip(reason="this interpreter rounds fma twice"))


def pytest_collection_finish() -> None:
    # No test frees what is there by now; to look through it took most of a gc.collect(), and of
    # test_lifetime.py, which calls many, 445 s of a run of 1,240.
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Same random numbers for every test; threads, default dtype, instruction set put back."""
    threads, dtype, isa = torch.get_num_threads(), torch.get_default_dtype(), _core.isa()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    _core.select_isa(isa)


@pytest.fixture(params=[_core.isa()] if ON_TRITON else _core.supported_isas())
def isa(request: pytest.FixtureRequest, settings: None) -> str:
    """Each instruction set this processor can run, selected; to Triton they are all one."""
    _core.select_isa(request.param)
    assert _core.isa() == request.param
    return str(request.param)


@pytest.fixture(scope="session")
def quick_benchmarks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `python -m benchmarks all --quick` writes, run once, and what it printed."""
    folder = tmp_path_factory.mktemp("benchmarks") / "made"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "all", "--quick", "--out", str(folder)],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=1800,  # ends a hang; a busy machine must not fail a test
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout
