"""What goes into a checkpoint and comes out of one: other libraries' forms, then loading, then the
portable form.

torch's loader gives every state but `step` its parameter's dtype, by a static method that no
subclass can override: what must stay as it was saved travels through it wrapped.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _core, declared, precision
from .precision import ASKING, CODES, HALVES, PLANES, SCALE
from .routes import name_of, parameters
from .stepping import Stepping

PACKED = "__bnb_optimizer_quant_state__"  # where newer versions of bitsandbytes keep all of a state
BNB_BLOCKS = (256, 2048)  # numbers that share an absmax in bitsandbytes: now, and up to 0.44


class Exact:
    """A tensor that torch's loader is to pass on as it is."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


# ---- other libraries' forms ----
def torchs(rule: str, state: dict[str, Any]) -> dict[str, Any]:
    """A parameter's state as torch would have it: bitsandbytes' names and codes, torchao's codes,
    which are tensors of classes of its own, become float32 under torch's names.
    """
    state = {**state, **state.get(PACKED, {})}
    state.pop(PACKED, None)
    # What torch.distributed.checkpoint leaves of a state that a flat checkpoint lacks.
    state = {name: value for name, value in state.items() if value != {}}
    # Codes as they were called before they had a name of their own.
    for name in [name for name in state if name + SCALE in state]:
        state[name + CODES] = state.pop(name)
    for name, value in state.items():
        if isinstance(value, Tensor) and "dequantize" in vars(type(value)):
            state[name] = value.dequantize()
    if "state1" not in state:
        return state
    given = [n for n in ("state1", "state2") if state.get(n) is not None]
    names = min((v for v in _core.variants(rule) if len(v) >= len(given)), key=len)
    step = torch.tensor(float(state["step"]))
    read = {n: _from_bitsandbytes(state, place) for place, n in enumerate(names, 1)}
    return {"step": step, **read}


def _from_bitsandbytes(state: dict[str, Any], place: int) -> Tensor:
    value: Tensor = state[f"state{place}"]
    if value.dtype != torch.uint8:
        return value
    absmax = state.get(f"absmax{place}")
    sizes = [b for b in BNB_BLOCKS if absmax is not None and -(-value.numel() // b) == len(absmax)]
    if absmax is None or not sizes:
        raise ValueError(
            f"a bitsandbytes checkpoint with 8-bit codes that are not scaled by blocks of "
            f"{' or '.join(map(str, BNB_BLOCKS))}; save it with block_wise=True"
        )
    scales = absmax.repeat_interleave(sizes[0])[: value.numel()]
    numbers: Tensor = state[f"qmap{place}"][value.view(-1).long()] * scales
    return numbers.view(value.shape)


# ---- loading ----
def prepare(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> dict[str, Any]:
    """A state dict for torch's loader. Raises ValueError, before anything is loaded, where its
    groups ask for formats that do not suit the parameters.
    """
    assert isinstance(optimizer, Stepping)
    asks: set[Any] = set()
    for own, group in zip(optimizer.param_groups, saved["param_groups"], strict=False):
        merged = {**own, **group}
        for param, key in zip(own["params"], group["params"], strict=False):
            if reason := precision.unfit(merged, param):
                index = next(i for i, (_, p) in enumerate(parameters(optimizer)) if p is param)
                raise ValueError(f"parameter {name_of(optimizer, index)} {reason}")
            if any(merged.get(name) for name in ASKING):
                asks.add(key)
    # 16 bits are too few for a number. What is no tensor, as in old checkpoints, becomes one where
    # torch's class keeps it.
    carried = declared.numbers(optimizer._rule) - {"step"}
    states = {}
    for key, entry in saved["state"].items():
        state = states[key] = torchs(optimizer._rule, entry)
        for name, value in state.items():
            if not isinstance(value, Tensor):
                continue
            if name in carried:
                state[name] = value.item()
            elif value.dtype in PLANES or (key in asks and name != "step"):
                state[name] = Exact(value)
    return {**saved, "state": states}


def finish(optimizer: Stepping) -> None:
    """What torch's loader was not to touch, unwrapped; then all in the formats that are asked."""
    for group, param in parameters(optimizer):
        state = optimizer.state.get(param)
        if state is None:
            continue
        for name, value in state.items():
            if isinstance(value, Exact):
                state[name] = value.tensor.to(param.device)
        precision.put(state, precision.converted(group, param, optimizer._rule, state))


# ---- saving ----
def portable(optimizer: Stepping, own: set[str]) -> dict[str, Any]:
    """The state dict with torch's names only, in float32; `own`: arguments that torch lacks."""
    found, rule = optimizer.state_dict(), optimizer._rule
    names = declared.states(rule) | declared.numbers(rule)
    states: dict[Any, dict[str, Any]] = {}
    kinds = {
        key: declared.kinds(rule, group)
        for group in found["param_groups"]
        for key in group["params"]
    }
    for key, state in found["state"].items():
        plain = states[key] = {}
        for stored, value in state.items():
            name = stored.removesuffix(CODES)
            if name not in names:
                continue
            plain[name] = value
            if name != stored:
                plain[name] = precision.decoded(value, state[name + SCALE], kinds[key][name])
            elif isinstance(value, Tensor) and value.dtype in HALVES:
                plain[name] = value.float()
    groups = [
        {name: value for name, value in group.items() if name not in own}
        for group in found["param_groups"]
    ]
    return {"state": states, "param_groups": groups}
