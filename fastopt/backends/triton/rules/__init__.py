"""The rules on the GPU, one file each, and the registry of what is found.

An update is the maths of `csrc/rules/<rule>.h` with the same roundings: `tl.fma` where that file
has fma, and nothing fused anywhere else (`enable_fp_fusion=False` at every launch). Its scalars
come in the order of that file's `scalar_names`. Options that switch a term are selections, so that
one compiled kernel serves them all; options that add a stream are the VARIANT, numbered as there.

A new rule is a file of its name with `RULE`: one update function and its scalars, a function that
is needed only for `capturable=True` and GradScaler, where no host knows the step. Of a rule whose
parameters carry other numbers too, it is given these, each with whether it is float64, and returns
what they become before the scalars.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from .rule import Rule

RULES: dict[str, Rule] = {}
for _name in sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py")):
    _module = import_module(f".{_name}", __name__)
    if hasattr(_module, "RULE"):
        RULES[_name] = _module.RULE
