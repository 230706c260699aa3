"""What a parameter's process holds of it, then what of a step all processes must find alike.

A DTensor is updated shard by shard in place. What is global (the norm of all gradients, whether
they are finite, statistics) is summed over exactly the mesh dimensions that cut a parameter, in
float64, and in collectives that follow from the parameters alone: a gradient that is None or an
empty shard on one process must not keep the others waiting.
"""

from __future__ import annotations

import gc
import math
import sys
import warnings
from collections.abc import Sequence
from typing import Any
from weakref import WeakSet

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from . import _core, declared
from .arguments import PASSES, setting
from .stepping import Stats, Stepping


def dtensor() -> type[Any] | None:
    """DTensor, once anybody has imported it; the core then knows it too."""
    module = sys.modules.get("torch.distributed.tensor")
    found: type[Any] | None = getattr(module, "DTensor", None)
    if found is not None and found is not _bound[0]:
        _core.bind_shards(found)
        _bound[0] = found
    return found


_bound: list[type[Any] | None] = [None]


def is_shard(tensor: Tensor) -> bool:
    found = dtensor()
    return found is not None and type(tensor) is found


def local(tensor: Tensor) -> Tensor:
    """The memory that stands behind a tensor."""
    return tensor._local_tensor if is_shard(tensor) else tensor  # type: ignore[attr-defined]


def describe(param: Any) -> str:
    """Of a DTensor, what of it is updated here; for explain()."""
    if not is_shard(param):
        return ""
    return f", local shards of {', '.join(map(str, param.placements))}"


def sharded_dims(param: Any) -> list[int]:
    """The mesh dimensions over which a DTensor is cut."""
    return [i for i, placement in enumerate(param.placements) if not placement.is_replicate()]


def cut(param: Any) -> tuple[int, int, int] | None:
    """(first, run, stride) of a DTensor's local elements in the whole, see Shard in the core; None
    where they do not lie so: where a dimension behind the first one and before another is cut.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(
        param.shape, param.device_mesh, param.placements
    )
    last = max((d for d in range(param.ndim) if shape[d] != param.shape[d]), default=0)
    if any(shape[d] != param.shape[d] for d in range(1, last)):
        return None
    inner = param.shape[last + 1 :].numel()
    outer = param.shape[1:].numel() if last else inner
    first = (
        (offset[0] * outer + offset[last] * inner) if last else offset[0] * inner if offset else 0
    )
    if last == 0:
        return first, 0, 0
    return first, shape[last] * inner, param.shape[last] * inner


class Agreement:
    """The sums of one optimizer's processes."""

    def __init__(self, params: Sequence[Tensor], norm_group: dist.ProcessGroup | None) -> None:
        teams: dict[tuple[str, ...], list[tuple[dist.ProcessGroup, str]]] = {}
        keys = []
        for param in params:
            groups: list[tuple[dist.ProcessGroup, str]] = []
            if is_shard(param):
                mesh: Any = param.device_mesh  # type: ignore[attr-defined]
                groups = [(mesh.get_group(i), mesh.device_type) for i in sharded_dims(param)]
            key = tuple(group.group_name for group, _ in groups)
            teams.setdefault(key, groups)
            keys.append(key)
        order = list(teams)
        self.team_of = [order.index(key) for key in keys]
        self.groups = list(teams.values()) or [[]]
        self.norm_group = norm_group

    @property
    def needed(self) -> bool:
        return self.norm_group is not None or any(self.groups)

    def total(self, squares: list[float], finite: bool) -> tuple[float, bool]:
        """Of all processes, from each team's sum of squares and whether all is finite here."""
        bad, total = float(not finite), 0.0
        for team, square in zip(self.groups, [*squares, 0.0], strict=False):
            for group, device in team:
                square, bad = summed([square, bad], group, device)
            total += square
        if self.norm_group is not None:
            total, bad = summed([total, bad], self.norm_group, device_of(self.norm_group))
        return total, bad == 0

    @property
    def cuts(self) -> bool:
        """Whether any parameter's parts are spread over processes."""
        return any(self.groups)

    def tensors(self, places: list[int], own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of the parameters in these places, over all processes that hold a part of them."""
        rows = torch.zeros(len(self.team_of), own.shape[1], dtype=torch.float64)
        rows[places] = torch.from_numpy(own)
        self._sum_by_team(rows)
        return rows[places].numpy()

    def _sum_by_team(self, rows: Tensor) -> None:
        for team, groups in enumerate(self.groups):
            members = [i for i, of in enumerate(self.team_of) if of == team]
            for group, device in groups:
                shared = rows[members].to(device)
                dist.all_reduce(shared, group=group)
                rows[members] = shared.cpu()

    def stats(self, own: list[Stats]) -> list[Stats]:
        """Of every parameter that any process has updated, norms over all that hold a part of it:
        the processes of a team, in one sum for all its parameters.
        """
        rows = torch.zeros(len(self.team_of), 4, dtype=torch.float64)
        for index, *norms in own:
            rows[index] = torch.tensor([*(norm * norm for norm in norms), 1])
        self._sum_by_team(rows)
        found: list[Stats] = []
        for index, (grad, update, weight, count) in enumerate(rows.tolist()):
            if count:
                found.append((index, math.sqrt(grad), math.sqrt(update), math.sqrt(weight)))
        return found


def summed(numbers: list[float], group: dist.ProcessGroup, device: str) -> list[float]:
    shared = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(shared, group=group)
    found: list[float] = shared.tolist()
    return found


# ---- what tensors do not tell ----
FSDP1 = "FullyShardedDataParallel"
_looked_at: WeakSet[Stepping] = WeakSet()  # once: to look may take a while, see maker_of_cuts


def warn_of_unnamed(optimizer: Stepping) -> None:
    """Warn where a norm or a skip must go over processes that neither tensors nor the user name,
    and where an update takes parts of tensors for tensors.

    Once an optimizer, and not once a process: the second one may well be another model's.
    """
    if optimizer in _looked_at or not dist.is_available():
        return
    asked = [
        name
        for name in ("max_grad_norm", "skip_nonfinite")
        if optimizer.norm_group is None
        and any(setting(group, name) != PASSES[name].default for group in optimizer.param_groups)
    ]
    waits = declared.waits_for_norms(optimizer._rule)
    if not (asked or waits) or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    _looked_at.add(optimizer)
    maker, name = maker_of_cuts(optimizer), type(optimizer).__name__
    if waits and maker == FSDP1:
        warnings.warn(
            f"{maker} gave this process's {name} parts of flattened parameters, and an update goes "
            "by the norm of each of them, not of the model's tensors: shard with FSDP2 "
            "(fully_shard), whose parameters tell what they are parts of",
            stacklevel=7,  # whoever called step()
        )
    if asked and maker:
        warnings.warn(
            f"{maker} gave this process's {name} a part of the model, and {' and '.join(asked)} "
            "goes by that part alone: another norm, another decision on every process. Name the "
            f"processes that share the model: {name}(..., norm_group=torch.distributed.group.WORLD)"
            ", or optimizer.norm_group = ... later",
            stacklevel=7,  # whoever called step()
        )


def maker_of_cuts(optimizer: Stepping) -> str:
    """Who gave an optimizer plain tensors that are not all of the model, or an empty string.

    FSDP1 leaves a mark on its flat parameters and on those they were made of. ZeRO leaves none on
    its inner optimizer's: whether a ZeroRedundancyOptimizer holds this one, only the heap knows. It
    is searched where this class has been imported: 0.07 s for 300,000 objects, on a busy Xeon.
    """
    flat = [
        p
        for group in optimizer.param_groups
        for p in group["params"]
        if getattr(p, "_fsdp_flattened", False)
    ]
    if flat and not any(map(_whole, flat)):
        return FSDP1
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    zero = getattr(module, "ZeroRedundancyOptimizer", None)
    held = zero is not None and any(
        zero in type(found).__mro__ and vars(found).get("optim") is optimizer
        for found in gc.get_objects()
    )
    return "ZeroRedundancyOptimizer" if held else ""


def _whole(param: Tensor) -> bool:
    """Whether a parameter of FSDP1 is all there, as with NO_SHARD: a part has one dimension."""
    whole: torch.Size | None = getattr(param, "_unpadded_unsharded_size", None)
    return param.ndim != 1 or param.shape == whole


def device_of(group: dist.ProcessGroup) -> str:
    """Where this group's backend takes tensors: the CPU, if it does."""
    kinds = [device.type for device in group._device_types]
    return "cpu" if "cpu" in kinds or not kinds else kinds[0]


def lacks(param: Any, backend: str, compact: bool) -> str:
    """Why a backend does not take a DTensor, or an empty string."""
    if backend == "triton":  # whose tables have the whole's shape
        return "the parameter is a DTensor, which Triton's kernels do not take"
    if partial := [p for p in param.placements if p.is_partial()]:
        return f"the parameter is a DTensor of placement {partial[0]}"
    if compact and cut(param) is None:
        return f"the parameter is a DTensor of placements {param.placements}, cut within its middle"
    return ""


def place_gradient(param: Any) -> None:
    """Give a DTensor's gradient the parameter's placements, which Partial sums may not have."""
    grad = param.grad
    if grad is None or not is_shard(param) or not is_shard(grad):
        return
    if grad._spec.placements != param._spec.placements:
        param.grad = grad.redistribute(placements=param.placements)
    elif type(grad._local_tensor) is not Tensor:  # still on its way
        grad._local_tensor = grad._local_tensor.wait()


def keeps_blocks(param: Any, block: int) -> bool:
    """Whether no process's part of a parameter of whole rows begins or ends within a block. Rows
    are never cut where the first dimension is; where another is, two are all that codes can have.
    """
    if not is_shard(param):
        return True
    parts = list(param.shape)
    for i in sharded_dims(param):  # one dimension may be cut twice
        dim = param.placements[i].dim
        parts[dim] = -(-parts[dim] // param.device_mesh.size(i))
        rows = dim == 0 and param.ndim > 1
        if not rows and (param.ndim > 2 or parts[dim] % block):
            return False
    return True


def own_shape(shape: tuple[int, ...], param: Any) -> tuple[int, ...]:
    """What this process holds of a tensor of this shape that is cut as a parameter is."""
    if not is_shard(param):
        return shape
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    own, _ = compute_local_shape_and_global_offset(shape, param.device_mesh, param.placements)
    return tuple(own)


def zeros_beside(param: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros where a parameter is, cut as it is: also where its memory is not on its mesh's device,
    as FSDP2's CPUOffloadPolicy has it.
    """
    zeros = torch.zeros(own_shape(shape, param), dtype=dtype, device=local(param).device)
    if not is_shard(param):
        return zeros
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta

    strides = torch.empty(shape, device="meta").stride()
    meta = TensorMeta(torch.Size(shape), strides, dtype)
    spec = DTensorSpec(param.device_mesh, param.placements, meta)
    return DTensor(zeros, spec, requires_grad=False)  # type: ignore[no-untyped-call]
