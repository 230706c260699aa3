"""RMSprop: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.rmsprop import rmsprop

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="rmsprop",
    ours=fastopt.RMSprop,
    theirs=torch.optim.RMSprop,
    reference=rules.rmsprop,
    ours_functional=fastopt.functional.rmsprop,
    theirs_functional=rmsprop,
    functional_states=["square_avg", "grad_avg", "momentum_buffer"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "alpha": {"alpha": 0.3, "centered": True},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "momentum": {"momentum": 0.9},
        "centered": {"centered": True},
        "everything": {
            "alpha": 0.9,
            "eps": 1e-3,
            "weight_decay": 0.1,
            "momentum": 0.8,
            "centered": True,
            "maximize": True,
        },
    },
    extensions={
        "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
        "eps_in_sqrt": {"eps": 0.1, "eps_in_sqrt": True, "centered": True},
    },
    changes=[{}, {"lr": 3e-3}, {"alpha": 0.95}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
