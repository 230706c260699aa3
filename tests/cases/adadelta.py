"""Adadelta: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.adadelta import adadelta

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="adadelta",
    ours=fastopt.Adadelta,
    theirs=torch.optim.Adadelta,
    reference=rules.adadelta,
    ours_functional=fastopt.functional.adadelta,
    theirs_functional=adadelta,
    functional_states=["square_avg", "acc_delta"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "rho": {"rho": 0.3},
        "rho_of_zero": {"rho": 0.0},
        "rho_of_one": {"rho": 1.0},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {"rho": 0.95, "eps": 1e-3, "weight_decay": 0.1, "maximize": True},
    },
    extensions={},
    changes=[{}, {"lr": 0.5}, {"rho": 0.8}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
