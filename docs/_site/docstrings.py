"""fastopt's docstrings as the site's reference shows them, read and never imported.

A docstring is written to be read as it stands, by help() and in an editor. Here its references
become links, its blocks Markdown's, and a class gets the signature that its arguments come to.
`tests/test_docstrings.py` compares those signatures with the classes' own.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

import griffe

PACKAGE = Path(__file__).parents[2] / "fastopt"
# What docstrings refer to by a bare name, beside the optimizers.
PUBLIC = {
    "explain": "fastopt.explain.explain",
    "memory": "fastopt.memory.memory",
    "patch": "fastopt.patch.patch",
    "Bucket": "fastopt.explain.Bucket",
    "Explanation": "fastopt.explain.Explanation",
    "Memory": "fastopt.memory.Memory",
    "ema_parameters": "fastopt.optim._average.Averages.ema_parameters",
    "swap_ema": "fastopt.optim._average.Averages.swap_ema",
    "step_in_backward": "fastopt.optim._backward.Backward.step_in_backward",
    "norm_in_backward": "fastopt.optim._backward.Backward.norm_in_backward",
    "step": "fastopt.optim._fused.FusedStep._step",
    "stats": "fastopt.optim._fused.FusedStep.stats",
    "grad_norm": "fastopt.optim._fused.FusedStep.grad_norm",
    "skipped_steps": "fastopt.optim._fused.FusedStep.skipped_steps",
    "norm_group": "fastopt.optim._fused.FusedStep.norm_group",
    "train": "fastopt.optim.schedulefree.Averaging.train",
    "eval": "fastopt.optim.schedulefree.Averaging.eval",
}
ENTRY = re.compile(r"([a-z]\w*(?:, +[a-z]\w*)*)(?: \(([^()]*)\))?: (.*)", re.S)


class Entry(NamedTuple):
    """What a docstring says of one argument, or of several."""

    names: list[str]
    kind: str
    text: str

    @property
    def default(self) -> str | None:
        """As it is written; None where there is none."""
        found = re.search(r"\(default: ((?:[^()]|\([^()]*\))*)\)", self.text)
        value = re.split(r":|, (?=[a-z])", found[1])[0] if found else None
        return value or ("None" if self.kind.endswith("optional") else None)


def optimizers() -> dict[str, str]:
    """The module of every optimizer, by its class."""
    tree = ast.parse((PACKAGE / "optim" / "__init__.py").read_text(encoding="utf-8"))
    modules = {
        alias.name: node.module or ""
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if not (node.module or "").startswith("_")
    }
    return dict(sorted(modules.items(), key=lambda item: item[0].lower()))


def docstring(name: str) -> str:
    """That of an optimizer."""
    path = PACKAGE / "optim" / f"{optimizers()[name]}.py"
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return ast.get_docstring(node) or ""
    raise LookupError(name)


def entries(text: str) -> list[Entry]:
    """What follows `Args:`."""
    found = re.search(r"^Args:\n((?:(?: +.*)?\n)+)", text + "\n", re.M)
    if not found:
        return []
    block = found[1].rstrip().replace(",\n    ", ", ")  # names that go on in the next line
    parts = re.split(r"\n(?=    \S)", block)
    made = []
    for part in parts:
        match = ENTRY.match(" ".join(part.split()))
        if not match:
            raise ValueError(f"an argument without a description: {part!r}")
        made.append(Entry(re.split(", +", match[1]), match[2] or "", match[3]))
    return made


def defaults(name: str) -> dict[str, str | None]:
    """Every argument of an optimizer with its default, as docstrings have them."""
    own: dict[str, str | None] = {}
    for entry in entries(docstring(name)):
        values = [entry.default] * len(entry.names)
        if entry.default is None and entry.names != ["params"]:  # "see Adam"
            of_adam = defaults("Adam")
            values = [of_adam[other] for other in entry.names]
        own |= dict(zip(entry.names, values, strict=True))
    return own


def signature(name: str) -> str:
    """One line each, as it would be called."""
    lines = [f"    {n}," if v is None else f"    {n}={v}," for n, v in defaults(name).items()]
    return "\n".join([f"fastopt.{name}(", *lines, ")"])


def linked(match: re.Match[str]) -> str:
    name = match[1].removeprefix("fastopt.")
    if name in ("functional", "rules"):
        return f"[`fastopt.{name}`][fastopt.{name}]"
    if name in optimizers():
        return f"[`{name}`][fastopt.optim.{optimizers()[name]}.{name}]"
    return f"[`{name}`][{PUBLIC[name]}]" if name in PUBLIC else f"`{name}`"


def as_markdown(text: str) -> str:
    text = re.sub(r":(?:class|meth|attr|func|mod):`([\w.]+)`", linked, text)
    text = re.sub(r"::\n", ":\n", text)
    return re.sub(r"(?<![<(])https://\S+[\w/]", r"<\g<0>>", text)


def summary(name: str) -> str:
    """The first line of an optimizer's docstring."""
    return as_markdown(docstring(name).splitlines()[0])


def listed(text: str) -> str:
    """Arguments as a list: a docstring names several at once, which griffe's parser does not."""
    found = re.search(r"^Args:\n(?:(?: +.*)?\n)+", text, re.M)
    if not found:
        return text
    items = []
    for entry in entries(text):
        names = ", ".join(f"`{name}`" for name in entry.names)
        kind = f" ({entry.kind})" if entry.kind else ""
        items.append(f"- {names}{kind}: {entry.text}\n")
    return text.replace(found[0], f"**Arguments:**\n\n{''.join(items)}\n")


class Docstrings(griffe.Extension):
    """The extension that mkdocs.yml names."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = listed(as_markdown(obj.docstring.value))
        if obj.is_class and obj.name in optimizers():
            head, rest = text.split("\n", 1)
            text = f"{head}\n\n```python\n{signature(obj.name)}\n```\n{rest}"
        obj.docstring.value = text
