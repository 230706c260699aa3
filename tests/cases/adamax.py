"""Adamax: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.adamax import adamax

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="adamax",
    ours=fastopt.Adamax,
    theirs=torch.optim.Adamax,
    reference=rules.adamax,
    ours_functional=fastopt.functional.adamax,
    theirs_functional=adamax,
    functional_states=["exp_avg", "exp_inf"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "betas": {"betas": (0.5, 0.9)},
        "zero_betas": {"betas": (0.0, 0.0)},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "maximize": True,
        },
    },
    extensions={},
    changes=[{}, {"lr": 3e-3}, {"betas": (0.85, 0.98)}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
