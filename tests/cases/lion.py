"""Lion: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.lion import ForLoop

OPTIMIZER = Optimizer(
    name="lion",
    ours=fastopt.Lion,
    theirs=ForLoop,
    reference=rules.lion,
    variants={
        "default": {},
        "lr": {"lr": 0.01},
        "betas": {"betas": (0.5, 0.7), "lr": 0.01},
        "weight_decay": {"weight_decay": 0.1, "lr": 0.01},
        "maximize": {"maximize": True, "weight_decay": 0.1, "lr": 0.01},
        "everything": {"betas": (0.8, 0.95), "weight_decay": 0.1, "maximize": True, "lr": 0.01},
    },
    extensions={},
    continuous=False,
    changes=[{}, {"lr": 3e-3}, {"betas": (0.85, 0.98)}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
