"""Adam: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.adam import adam

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="adam",
    ours=fastopt.Adam,
    theirs=torch.optim.Adam,
    reference=rules.adam,
    ours_functional=fastopt.functional.adam,
    theirs_functional=adam,
    functional_states=["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
    fused=True,
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "betas": {"betas": (0.5, 0.9)},
        "small_betas": {"betas": (0.3, 0.2)},
        "zero_betas": {"betas": (0.0, 0.0)},
        "weight_decay": {"weight_decay": 0.1},
        "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "amsgrad": {"amsgrad": True},
        "everything": {
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "amsgrad": True,
            "maximize": True,
        },
    },
    extensions={
        "eps_in_sqrt": {"eps": 0.1, "eps_in_sqrt": True},
    },
    changes=[{}, {"lr": 3e-3}, {"betas": (0.85, 0.98)}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
