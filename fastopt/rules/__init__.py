"""The rules in plain NumPy: sgd, adam, adamw, rmsprop, what fastopt's engine computes bit for bit.

Each is one function, `rule(p, g, states, *, step, <torch's hyperparameters>, dtype, grad_scale)`,
that returns the new parameter and a new dict of states under torch's names; an absent state starts
as torch starts it. Nothing is changed in place, and nothing here uses the compiled core: these are
for checking it.

    p, states = rules.adamw(p, g, states, step=1, lr=1e-3, dtype="float32")

`dtype` names how the tensors are stored. Arrays are of the type that is computed in: float64 for
"float64", float32 for "float32", "bfloat16" and "float16", whose values are rounded where the
engine stores them. "exact" is the mathematics: np.longdouble (at least float64) throughout, with no
rounding to reproduce; errors are measured against it.
"""

from .adam import adam, adamw
from .rmsprop import rmsprop
from .sgd import sgd

__all__ = ["adam", "adamw", "rmsprop", "sgd"]
