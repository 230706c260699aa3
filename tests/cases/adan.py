"""Adan: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.adan import ForLoop

OPTIMIZER = Optimizer(
    name="adan",
    ours=fastopt.Adan,
    theirs=ForLoop,
    reference=rules.adan,
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "betas": {"betas": (0.5, 0.7, 0.9)},
        "zero_betas": {"betas": (0.0, 0.0, 0.0)},
        "weight_decay": {"weight_decay": 0.1},
        "no_prox": {"weight_decay": 0.1, "no_prox": True},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "betas": (0.9, 0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "no_prox": True,
            "maximize": True,
        },
    },
    extensions={},
    changes=[{}, {"lr": 3e-3}, {"betas": (0.85, 0.9, 0.98)}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
