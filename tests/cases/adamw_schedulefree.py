"""Schedule-free AdamW: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.schedulefree import AdamWForLoop

OPTIMIZER = Optimizer(
    name="adamw_schedulefree",
    ours=fastopt.AdamWScheduleFree,
    theirs=AdamWForLoop,
    reference=rules.adamw_schedulefree,
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "betas": {"betas": (0.5, 0.9)},
        "zero_beta": {"betas": (0.3, 0.0)},
        "warmup": {"warmup_steps": 3},
        "r": {"r": 1.5, "weight_lr_power": 0.5},
        "even": {"weight_lr_power": 0.0},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "warmup_steps": 4,
            "r": 1.0,
            "weight_lr_power": 1.0,
            "maximize": True,
        },
    },
    extensions={},
    changes=[
        {},
        {"lr": 3e-3},
        {"betas": (0.85, 0.98)},
        {"weight_decay": 0.2, "warmup_steps": 9},
        {"lr": 0.0},
    ],
)
