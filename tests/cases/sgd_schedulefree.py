"""Schedule-free SGD: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.schedulefree import SGDForLoop

OPTIMIZER = Optimizer(
    name="sgd_schedulefree",
    ours=fastopt.SGDScheduleFree,
    theirs=SGDForLoop,
    reference=rules.sgd_schedulefree,
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "momentum": {"momentum": 0.3, "lr": 0.1},
        "warmup": {"lr": 0.1, "warmup_steps": 3},
        "r": {"lr": 0.1, "r": 1.5, "weight_lr_power": 0.5},
        "even": {"lr": 0.1, "weight_lr_power": 0.0},
        "weight_decay": {"lr": 0.1, "weight_decay": 0.1},
        "maximize": {"lr": 0.1, "maximize": True, "weight_decay": 0.1},
        "everything": {
            "lr": 0.3,
            "momentum": 0.8,
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
        {"momentum": 0.85, "lr": 0.3},
        {"weight_decay": 0.2, "warmup_steps": 9},
        {"lr": 0.0},
    ],
)
