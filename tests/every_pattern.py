"""All 2^32 patterns of a float32 through the exact split, on each instruction set: every one comes
back. `make test` takes a sample; this takes minutes: `python tests/every_pattern.py`.
"""

from __future__ import annotations

import numpy as np
from test_formats import check_split16

from fastopt import _core

CHUNK = 1 << 24

if __name__ == "__main__":
    for isa in _core.supported_isas():
        _core.select_isa(isa)
        for start in range(0, 1 << 32, CHUNK):
            check_split16(start + np.arange(CHUNK, dtype=np.uint64))
        print(f"{isa}: all patterns come back", flush=True)
