"""Rprop: its classes and reference, then its variants."""

import torch
from support import Optimizer
from torch.optim.rprop import rprop

import fastopt
from fastopt import rules

OPTIMIZER = Optimizer(
    name="rprop",
    ours=fastopt.Rprop,
    theirs=torch.optim.Rprop,
    reference=rules.rprop,
    ours_functional=fastopt.functional.rprop,
    theirs_functional=rprop,
    functional_states=["prev", "step_size"],
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "etas": {"etas": (0.3, 1.7)},
        "step_sizes": {"step_sizes": (0.009, 0.011)},
        "maximize": {"maximize": True},
        "everything": {
            "lr": 0.03,
            "etas": (0.7, 1.1),
            "step_sizes": (0.02, 0.034),
            "maximize": True,
        },
    },
    extensions={},
    continuous=False,
    changes=[{}, {"lr": 3e-3}, {"etas": (0.6, 1.3)}, {"step_sizes": (1e-3, 0.1)}, {"lr": 0.0}],
)
