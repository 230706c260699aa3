"""SGD: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.sgd import sgd

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="sgd",
    ours=fastopt.SGD,
    theirs=torch.optim.SGD,
    reference=rules.sgd,
    ours_functional=fastopt.functional.sgd,
    theirs_functional=sgd,
    functional_states=["momentum_buffer"],
    variants={
        "default": {},
        "lr": {"lr": 0.3},
        "weight_decay": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "momentum": {"momentum": 0.9},
        "dampening": {"momentum": 0.9, "dampening": 0.5},
        "nesterov": {"momentum": 0.9, "nesterov": True},
        "everything": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1, "maximize": True},
        "nesterov_everything": {
            "momentum": 0.8,
            "nesterov": True,
            "weight_decay": 0.1,
            "maximize": True,
        },
    },
    extensions={
        "decoupled": {"weight_decay": 0.1, "decoupled_weight_decay": True},
    },
    changes=[{}, {"lr": 0.03}, {"weight_decay": 0.2}, {"lr": 0.0}, {"lr": 0.01}],
)
