"""NAdam: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.nadam import nadam

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="nadam",
    ours=fastopt.NAdam,
    theirs=torch.optim.NAdam,
    reference=rules.nadam,
    ours_functional=fastopt.functional.nadam,
    theirs_functional=nadam,
    functional_states=["exp_avg", "exp_avg_sq", "mu_product"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "betas": {"betas": (0.5, 0.9)},
        "zero_betas": {"betas": (0.0, 0.0)},
        "momentum_decay": {"momentum_decay": 0.5},
        "no_momentum_decay": {"momentum_decay": 0.0},
        "weight_decay": {"weight_decay": 0.1},
        "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "momentum_decay": 0.02,
            "maximize": True,
        },
    },
    extensions={},
    changes=[
        {},
        {"lr": 3e-3},
        {"betas": (0.85, 0.98)},
        {"weight_decay": 0.2, "momentum_decay": 0.1},
        {"lr": 0.0},
    ],
)
