"""LAMB: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.lamb import ForLoop

OPTIMIZER = Optimizer(
    name="lamb",
    ours=fastopt.LAMB,
    theirs=ForLoop,
    reference=rules.lamb,
    variants={
        "default": {},
        "lr": {"lr": 0.03},
        "betas": {"betas": (0.5, 0.7)},
        "eps": {"eps": 1e-2, "lr": 0.01},
        "weight_decay": {"weight_decay": 0.1, "lr": 0.01},
        "uncorrected": {"bias_correction": False, "lr": 0.01},
        "sparing": {"always_adapt": False, "lr": 0.01},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "lr": 0.01,
            "betas": (0.8, 0.95),
            "eps": 1e-4,
            "weight_decay": 0.1,
            "always_adapt": False,
            "maximize": True,
        },
    },
    extensions={},
    changes=[{}, {"lr": 3e-3}, {"betas": (0.85, 0.98)}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
