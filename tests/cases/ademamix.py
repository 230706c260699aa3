"""AdEMAMix: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.ademamix import ForLoop

OPTIMIZER = Optimizer(
    name="ademamix",
    ours=fastopt.AdEMAMix,
    theirs=ForLoop,
    reference=rules.ademamix,
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "betas": {"betas": (0.5, 0.9, 0.95)},
        "zero_betas": {"betas": (0.0, 0.0, 0.0)},
        "alpha": {"alpha": 2.0, "betas": (0.9, 0.999, 0.9)},
        "warmup": {"beta3_warmup": 4, "alpha_warmup": 3},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "betas": (0.8, 0.95, 0.99),
            "alpha": 3.0,
            "beta3_warmup": 3,
            "alpha_warmup": 5,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "maximize": True,
        },
    },
    extensions={},
    changes=[
        {},
        {"lr": 3e-3},
        {"betas": (0.85, 0.98, 0.999), "alpha": 4.0},
        {"weight_decay": 0.2, "alpha_warmup": 10, "beta3_warmup": 10},
        {"lr": 0.0},
    ],
)
