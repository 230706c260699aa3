"""Docstrings of public names: every argument with its true default, what the reference promises of
them, and that the site's reference has them all.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fastopt

DOCS = Path(__file__).parents[1] / "docs"


def load(name: str) -> ModuleType:
    """A module of the site's; griffe is not there where the site is not built."""
    stand_in: Any = ModuleType("griffe")
    stand_in.Extension = object
    spec = importlib.util.spec_from_file_location(name, DOCS / "_site" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "griffe", stand_in)
        spec.loader.exec_module(module)
    return module


docstrings = load("docstrings")
CLASSES = [cls.__name__ for cls in fastopt.optim.CLASSES]


def test_every_optimizer_has_a_page() -> None:
    assert [*docstrings.optimizers()] == sorted(CLASSES, key=str.lower)


@pytest.mark.parametrize("name", CLASSES)
def test_arguments(name: str) -> None:
    """The docstring names every argument of the class, and no other, with the default it has."""
    cls = getattr(fastopt, name)
    assert inspect.getdoc(cls) == docstrings.docstring(name)
    described = docstrings.defaults(name)
    actual = inspect.signature(cls).parameters
    assert described.keys() == actual.keys()
    for argument, default in described.items():
        if actual[argument].default is inspect.Parameter.empty:
            assert default is None
        else:
            assert ast.literal_eval(default) == actual[argument].default, argument


@pytest.mark.parametrize("name", CLASSES)
def test_parts(name: str) -> None:
    """Algorithm, shapes and dtypes, states, errors, source."""
    text = docstrings.docstring(name)
    assert re.search(r"::\n\n    +\w+.* = ", text)
    assert re.search(r"^    params: parameters.*?float32,\s+float64,\s+bfloat16", text, re.M | re.S)
    for part in ("State per parameter", "Raises:\n", "Source: "):
        assert f"\n{part}" in text


def reference() -> str:
    pages = [*(DOCS / "reference").glob("*.md")]
    return "\n".join(page.read_text(encoding="utf-8") for page in pages)


def test_every_public_name_is_in_the_reference() -> None:
    shown = {m.rsplit(".", 1)[-1] for m in re.findall(r"^::: ([\w.]+)", reference(), re.M)}
    shown |= {*docstrings.optimizers()}
    torchs = {n for n in fastopt.__all__ if getattr(fastopt, n) is getattr(torch.optim, n, None)}
    assert {*fastopt.__all__} - torchs - shown == set()
    index = (DOCS / "reference" / "index.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in index for name in torchs)


@pytest.mark.parametrize("name", ["explain", "memory", "patch"])
def test_functions_say_what_they_return(name: str) -> None:
    text = inspect.getdoc(getattr(fastopt, name)) or ""
    assert "Returns:\n" in text
    for argument in inspect.signature(getattr(fastopt, name)).parameters:
        assert f"    {argument}: " in text


def test_methods_have_docstrings() -> None:
    """Of what every optimizer has beside torch's, all of which is in the reference."""
    theirs = {*dir(torch.optim.Optimizer)}
    for cls in fastopt.optim.CLASSES:
        ours = [c for c in cls.__mro__ if c.__module__.startswith("fastopt.")]
        own = {n for c in ours for n in vars(c) if not n.startswith("_")} - theirs
        for name in own:
            assert inspect.getdoc(getattr(cls, name)), (cls, name)
            assert re.search(rf"^::: [\w.]+\.{name}$", reference(), re.M), name


def test_functional_forms() -> None:
    """The table has every form of the engine's, with its lists and numbers in order."""
    page = (DOCS / "reference" / "functional.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    cells = [[re.findall(r"`(\w+)`", cell) for cell in row.split("|")[1:-1]] for row in rows]
    told = {name: (lists, numbers) for ((name,), lists, numbers) in cells}
    actual = {}
    for name, form in fastopt.functional.forms().items():
        if not isinstance(form, fastopt.functional.Form):
            continue
        asked = [p for p in inspect.signature(form).parameters.values() if p.default is p.empty]
        lists = [p.name for p in asked if p.kind is not p.KEYWORD_ONLY]
        actual[name] = (lists, [p.name for p in asked if p.kind is p.KEYWORD_ONLY])
    assert told == actual
