"""AdamW: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.adamw import adamw

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="adamw",
    ours=fastopt.AdamW,
    theirs=torch.optim.AdamW,
    reference=rules.adamw,
    ours_functional=fastopt.functional.adamw,
    theirs_functional=adamw,
    functional_states=["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
    fused=True,
    variants={
        "default": {},
        "no_weight_decay": {"weight_decay": 0.0},
        "weight_decay": {"weight_decay": 0.3, "lr": 0.1},
        "maximize": {"maximize": True},
        "amsgrad": {"amsgrad": True, "weight_decay": 0.1},
    },
    extensions={"eps_in_sqrt": {"eps": 0.1, "eps_in_sqrt": True, "amsgrad": True}},
    changes=[{}, {"lr": 3e-3}, {"betas": (0.85, 0.98)}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
