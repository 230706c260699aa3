"""Steps in compact precision against the same step in float32, and against other libraries' 8 bits.

One maker a format: what it is given in float32 it casts, so that all share one reference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks.contestants import MAKERS, Maker
from benchmarks.cpu import Row, judged, table, work_shapes
from benchmarks.method import Plan
from benchmarks.peers import EIGHT_BIT, LIBRARIES
from benchmarks.problem import ALGORITHMS, Problem
from benchmarks.race import race
from benchmarks.record import Record
from benchmarks.session import Question, each_of
from fastopt import _core


@dataclass(frozen=True)
class Format:
    """What a training is kept in, and what its step is to be worth of the float32 one's time: with
    AVX-512, and with AVX2.
    """

    options: Mapping[str, Any]
    dtype: torch.dtype = torch.float32
    goals: tuple[float | None, float | None] = (None, None)
    moments: torch.dtype | None = None  # Adam's, put there by hand; None: as the class makes them

    def make(self, cls: str, params: list[Tensor], options: Mapping[str, Any]) -> Any:
        for param in params:
            grad, param.grad = param.grad, None
            param.data = param.data.to(self.dtype)
            param.grad = None if grad is None else grad.to(self.dtype)
        options = {**options, "min_8bit_size": 1, **self.options}
        optimizer = MAKERS["fastopt"](cls, params, options)
        if self.moments is not None:
            for param in params:
                moments = {
                    name: torch.zeros_like(param, dtype=self.moments)
                    for name in ("exp_avg", "exp_avg_sq")
                }
                optimizer.state[param] = {"step": torch.tensor(0.0), **moments}
        return optimizer


BF16 = torch.bfloat16
FORMATS = {
    "16-bit states": Format({"state_bits": 16}, goals=(1.3, 1.25)),
    "8-bit states": Format({"state_bits": 8}, goals=(1.2, 1.1)),
    "bf16+24, 8-bit states": Format(
        {"state_bits": 8, "master_weight_bits": 24}, BF16, goals=(1.2, 1.0)
    ),
    "bf16+24, 16-bit states": Format({"state_bits": 16, "master_weight_bits": 24}, BF16),
    "bf16+32, 8-bit states": Format({"state_bits": 8, "master_weight_bits": 32}, BF16),
    "bf16 by noise, 8-bit states": Format({"state_bits": 8, "stochastic_rounding": True}, BF16),
    "bf16, float32 states": Format({}, BF16, goals=(1.1, 1.1), moments=torch.float32),
}
# Of whoever keeps its states in 8 bits: its time over fastopt's.
OTHERS = {"bitsandbytes.8bit": 10.0, "torchao.8bit": 40.0}

ROWS = [
    *(Row("1x64M", "AdamW", name, "fastopt.fp32") for name in FORMATS),
    *(Row("100x256x256", "AdamW", name, "fastopt.fp32") for name in FORMATS),
    Row("1x64M", "SGD-momentum", "8-bit states", "fastopt.fp32"),
    *(Row("1x16M", "AdamW", f"8-bit states against {name}", name, OTHERS[name]) for name in OTHERS),
]


def run_row(row: Row, plan: Plan) -> Record:
    """Check and time one row. Results may be off, as a mean, by what 8 bits are; weights rounded to
    bfloat16 are off by 0.03 of the update themselves, within that.
    """
    problem = Problem(work_shapes(row.work, plan.quick), ALGORITHMS[row.algorithm], torch.float32)
    form = FORMATS[row.dtype.split(" against ")[0]]
    entrants: dict[str, Maker] = {"fastopt": form.make}
    if row.against in LIBRARIES:
        entrants[row.against] = LIBRARIES[row.against].make
    else:
        entrants[row.against] = MAKERS["fastopt"]
        if (row.work, row.algorithm) == ("1x64M", "AdamW"):
            row = replace(row, goal=form.goals[_core.isa() != "avx512"])
    found = race(problem, entrants, plan, dict.fromkeys(entrants, EIGHT_BIT))
    return judged(asdict(row) | found, plan.quick)


def installed(row: Row) -> bool:
    return row.against not in LIBRARIES or LIBRARIES[row.against].version is not None


QUESTION = Question(
    "compact",
    "steps over states of 16 and 8 bits and corrected weights against the float32 step",
    each_of([row for row in ROWS if installed(row)], run_row),
    table,
)
