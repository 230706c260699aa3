"""RAdam: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.radam import radam

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="radam",
    ours=fastopt.RAdam,
    theirs=torch.optim.RAdam,
    reference=rules.radam,
    ours_functional=fastopt.functional.radam,
    theirs_functional=radam,
    functional_states=["exp_avg", "exp_avg_sq"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "betas": {"betas": (0.5, 0.9)},
        "zero_betas": {"betas": (0.0, 0.0)},
        "weight_decay": {"weight_decay": 0.1},
        "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "maximize": True,
        },
    },
    extensions={},
    # It rectifies from the sixth step on at the earliest: L is at most t. Betas of (0.9, 0.6) make
    # M exactly 4, so that it never does.
    changes=[
        {},
        {"lr": 3e-3},
        {"betas": (0.9, 0.6)},
        {"lr": 0.0},
        {"lr": 0.01, "betas": (0.85, 0.98)},
        {"weight_decay": 0.2},
        {},
        {"betas": (0.9, 0.6)},
    ],
)
