"""Triton's interpreter without a repetition that took nearly half of the parity suite's time.

A launch replaces the builtins of triton.language for as long as it runs, and every call of a device
function in it looks through all of them again for what is left to replace: nothing.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def look_once() -> None:
    """From here on, in this process."""
    replace = interpreter._patch_lang

    def replace_once(function: FunctionType) -> Any:
        seen = function.__globals__.values()
        langs = [lang for lang in (tl, tl.core) if any(value is lang for value in seen)]
        if any(tl.core.is_builtin(lang.load) for lang in langs):
            return replace(function)
        return interpreter._LangPatchScope()  # nothing to put back

    interpreter._patch_lang = replace_once
