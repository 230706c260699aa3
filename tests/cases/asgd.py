"""ASGD: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.asgd import asgd

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="asgd",
    ours=fastopt.ASGD,
    theirs=torch.optim.ASGD,
    reference=rules.asgd,
    ours_functional=fastopt.functional.asgd,
    theirs_functional=asgd,
    functional_states=["ax", "mu", "eta"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "lambd": {"lambd": 0.3, "lr": 0.1},
        "alpha": {"alpha": 0.5, "lambd": 0.3, "lr": 0.1},
        "t0": {"t0": 0.5},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "lambd": 0.05,
            "alpha": 0.9,
            "t0": 0.0,
            "weight_decay": 0.1,
            "maximize": True,
        },
    },
    extensions={},
    changes=[{}, {"lr": 3e-3}, {"lambd": 0.01, "t0": 1.5}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
