"""LARS: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.lars import ForLoop

OPTIMIZER = Optimizer(
    name="lars",
    ours=fastopt.LARS,
    theirs=ForLoop,
    reference=rules.lars,
    variants={
        "default": {},
        "lr": {"lr": 3.0},
        "momentum": {"momentum": 0.5},
        "plain": {"momentum": 0},
        "weight_decay": {"weight_decay": 0.1},
        "nesterov": {"nesterov": True},
        "trust": {"trust_coefficient": 0.02, "eps": 1e-3, "momentum": 0, "weight_decay": 0.1},
        "sparing": {"always_adapt": False, "lr": 0.01},
        "maximize": {"maximize": True},
        "everything": {
            "lr": 2.0,
            "momentum": 0.8,
            "weight_decay": 0.1,
            "nesterov": True,
            "trust_coefficient": 0.01,
            "eps": 1e-8,
            "maximize": True,
        },
    },
    extensions={},
    changes=[{}, {"lr": 0.3}, {"momentum": 0.7}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
