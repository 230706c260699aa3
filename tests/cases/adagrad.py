"""Adagrad: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.adagrad import adagrad

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="adagrad",
    ours=fastopt.Adagrad,
    theirs=torch.optim.Adagrad,
    reference=rules.adagrad,
    ours_functional=fastopt.functional.adagrad,
    theirs_functional=adagrad,
    functional_states=["sum"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.1},
        "lr_decay": {"lr_decay": 0.5},
        "initial": {"initial_accumulator_value": 0.3},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "everything": {
            "lr_decay": 0.1,
            "weight_decay": 0.1,
            "initial_accumulator_value": 0.1,
            "eps": 1e-3,
            "maximize": True,
        },
    },
    extensions={},
    changes=[{}, {"lr": 3e-3}, {"lr_decay": 0.2}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
