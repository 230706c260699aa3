"""AdaBelief: its classes and reference, then its variants."""

from support import Optimizer

import fastopt
from fastopt import rules
from fastopt.optim.adabelief import ForLoop

OPTIMIZER = Optimizer(
    name="adabelief",
    ours=fastopt.AdaBelief,
    theirs=ForLoop,
    reference=rules.adabelief,
    variants={
        "default": {},
        "lr": {"lr": 0.1},
        "eps": {"eps": 0.01},
        "betas": {"betas": (0.5, 0.9)},
        # eps: the square of a difference that cancels out is nothing but rounding.
        "zero_betas": {"betas": (0.2, 0.0), "eps": 0.1},
        "weight_decay": {"weight_decay": 0.1, "decoupled_weight_decay": False},
        "decoupled": {"weight_decay": 0.1},
        "maximize": {"maximize": True, "weight_decay": 0.1},
        "amsgrad": {"amsgrad": True},
        "everything": {
            "betas": (0.8, 0.95),
            "eps": 1e-3,
            "weight_decay": 0.1,
            "amsgrad": True,
            "decoupled_weight_decay": False,
            "maximize": True,
        },
    },
    extensions={},
    changes=[{}, {"lr": 3e-3}, {"betas": (0.85, 0.98)}, {"weight_decay": 0.2}, {"lr": 0.0}],
)
