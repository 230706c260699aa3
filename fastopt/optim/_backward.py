"""The step within backward(): one backward pass, then what an optimizer offers of it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from .. import declared
from ..arguments import setting
from ..composition import measures, real
from ..plan import stepped, version
from ..ranks import Agreement, is_shard, local, place_gradient
from ..routes import name_of, names, parameters
from ..stepping import NO_SCALER, Stats, Stepping
from ._average import Averages
from ._record import Record, Summary
from ._shares import Share, Shares

# Gradients are let go of by so many bytes. backward() with AdamW in it, 2 threads of an AVX-512
# Xeon, ms at one tensor, 0.25, 1, 4, 16 and 64 MiB: 100 x 256x256 11.0, 11.5, 11.7, 10.2, 10.2,
# 10.8 (10.2 with step() after it); 1000 x 64 40, 32, 31, 31, 32, 30 (25); 8 x 2M 22, 22, 28, 24,
# 27, 26 (29).
SHARE_BYTES = 4 << 20


class Pass:
    """One backward pass, in which every share is updated once its gradients are all there."""

    def __init__(self, optimizer: Backward, shares: Shares) -> None:
        self.optimizer, self.shares = optimizer, shares
        self.missing: dict[Share, set[int]] = {}  # of those that some have come of
        self.done: set[int] = set()
        self.new: list[int] = []  # of no share yet
        self.new_bytes = 0
        self.stats: list[Stats] = []
        self.skipped = False

    def on_gradient(self, param: Tensor) -> None:
        places = self.shares.places[param]
        index = places[0]
        if index in self.done:
            raise RuntimeError(
                f"parameter {name_of(self.optimizer, index)} gets a second gradient, but the first "
                "has been used: call backward() once inside step_in_backward(), the other times "
                "before it; use_reentrant=False where activations are checkpointed; step() after "
                "backward() where FSDP2 wraps a module that is used twice"
            )
        share = self.shares.of.get(index)
        if share is not None:
            missing = self.missing.setdefault(share, set(share.members))
            missing.difference_update(places)  # again where FSDP2 reduces what was used twice
            if not missing:
                self.update(share)
            return
        if index not in self.new:
            self.new += places
            self.new_bytes += local(param).nbytes
        if self.new_bytes >= SHARE_BYTES:
            self.update_new()

    def update_new(self) -> None:
        if self.new:
            share, self.new, self.new_bytes = self.shares.add(self.new), [], 0
            self.update(share)

    def finish(self) -> None:
        """What is left: the last share, and gradients that came in an earlier pass."""
        self.update_new()
        rest = [i for i, p in enumerate(self.shares.params) if p.grad is not None]
        if rest:
            self.update(Share(frozenset(rest)))

    def update(self, share: Share) -> None:
        optimizer, params = self.optimizer, self.shares.params
        record = optimizer._record
        blank = record.drop_blank(optimizer.state, [params[i] for i in share.members])
        agreement = self.shares.measured
        try:
            share.plan, outcome = stepped(
                optimizer, share.plan, NO_SCALER, share.members, agreement
            )
        except BaseException:
            record.put_back(optimizer.state, blank)
            raise
        if outcome == "skipped":
            record.put_back(optimizer.state, blank)
            self.skipped = True
        else:
            self.stats += share.plan.own_stats
            record.corrected |= {
                p: version(p) for p in (params[i] for i in share.members) if p in record.corrected
            }
        if not share.plan.lasting:
            share.plan = None
        for i in share.members:
            params[i].grad = None
        self.done |= share.members


class Backward(Averages, Stepping):
    """Mixin: an optimizer's step within backward()."""

    _record: Record

    @contextmanager
    def step_in_backward(self, module: torch.nn.Module | None = None) -> Iterator[None]:
        """Step while gradients are computed, and let go of each once it has been used::

            with optimizer.step_in_backward():
                loss.backward()

        The weights end as after `loss.backward(); optimizer.step()`, bit for bit, but gradients
        never exist all at once. (Parameters that share memory are updated in the order in which
        their gradients come.) Gradients are accumulated as ever: by calls of backward() before
        the `with`, the last one inside. Call neither step() nor zero_grad(); hooks of step() are
        not called.

        What needs all gradients first, `max_grad_norm` and `skip_nonfinite`, needs a backward pass
        of its own, see :meth:`norm_in_backward`. GradScaler, which unscales after backward(), and
        FSDP2's CPUOffloadPolicy, which copies gradients meanwhile, do not go with this.

        Args:
            module: the model, needed where torch.distributed has several processes and parameters
                are plain tensors. Where it is DistributedDataParallel or FSDP1, which reduce
                gradients behind backward()'s back and keep them, the step is taken as backward()
                ends, with everything that step() can do, and nothing is saved.

        Raises:
            RuntimeError: a norm is needed and was not measured; `module` is needed; a parameter
                gets a second gradient; and as :meth:`step`, whose error leaves the shares updated
                before it as they are.
        """
        record = self._record
        if record.swapped:
            self._refuse_inside_swap("step_in_backward()")
        if self._is_reduced_late(module):
            yield
            self.step()
            for _, p in parameters(self):
                p.grad = None
            return
        shares = self._shares()
        if shares.measured.cuts and declared.waits_for_norms(self._rule):
            raise RuntimeError(
                f"{type(self).__name__}'s update waits for the norms of DTensors over all "
                "processes, which share by share within backward() they would not come to "
                "together: call step() after backward()"
            )
        if measures(self.param_groups) and shares.measured.found is None:
            raise RuntimeError(
                "max_grad_norm and skip_nonfinite need all gradients before the first is used: "
                "measure them by a backward pass of their own, `with optimizer.norm_in_backward(): "
                "loss.backward(retain_graph=True)`; or leave them out (max_grad_value needs no "
                "other gradient); or call step() after backward()"
            )
        record.drop_stale_corrections(self.state)
        record.corrected = {
            p: version(p) for g, p in parameters(self) if setting(g, "master_weight_bits")
        }
        run = Pass(self, shares)
        try:
            with self._hooks(run.on_gradient):
                yield
            run.finish()
            record.last = self._told(run)
        finally:  # a norm is good for these gradients alone
            shares.measured.found = None
        record.skipped += run.skipped
        self._opt_called = True  # for torch's schedulers, which warn where no step came before

    @contextmanager
    def norm_in_backward(self) -> Iterator[None]:
        """Measure all gradients for the next :meth:`step_in_backward`, and keep none of them::

            with optimizer.norm_in_backward():
                loss.backward(retain_graph=True)
            with optimizer.step_in_backward():
                loss.backward()

        Exact global clipping without all gradients at once, for a second backward pass.

        Raises:
            RuntimeError: there is a gradient already, as accumulated ones cannot be measured so.
        """
        for index, (_, p) in enumerate(parameters(self)):
            if p.grad is not None:
                raise RuntimeError(
                    f"parameter {name_of(self, index)} has a gradient already, to which that of "
                    "norm_in_backward() would be added: call zero_grad(set_to_none=True) first; "
                    "gradients of several backward passes are clipped by step() alone"
                )
        shares = self._shares()
        agreement = Agreement(shares.params, self.norm_group)
        squares, finite = [0.0] * len(agreement.groups), [True]

        def on_gradient(param: Tensor) -> None:
            place_gradient(param)
            assert param.grad is not None
            numbers = real(local(param.grad))
            square = torch.linalg.vector_norm(numbers, dtype=torch.float64).square().item()
            for place in shares.places[param]:
                squares[agreement.team_of[place]] += square
            finite[0] &= bool(numbers.isfinite().all())
            param.grad = None

        with self._hooks(on_gradient):
            yield
        shares.measured.found = agreement.total(squares, finite[0])

    def _shares(self) -> Shares:
        record, params = self._record, [p for _, p in parameters(self)]
        if record.shares is None or [*map(id, record.shares.params)] != [*map(id, params)]:
            record.shares = Shares(params)
        return record.shares

    @contextmanager
    def _hooks(self, on_gradient: Callable[[Tensor], None]) -> Iterator[None]:
        """Told of every gradient when it is there; FSDP2 calls these when its shard is."""
        handles = [
            p.register_post_accumulate_grad_hook(on_gradient)  # type: ignore[no-untyped-call]
            for p in dict.fromkeys(p for _, p in parameters(self))
            if p.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _is_reduced_late(self, module: torch.nn.Module | None) -> bool:
        """Whether gradients are not final when backward() has accumulated them."""
        if module is None:
            many = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
            if many and not all(is_shard(p) for _, p in parameters(self)):
                raise RuntimeError(
                    "there are several processes, and of plain tensors it cannot be seen whether "
                    "their gradients are averaged after backward(): pass the model, "
                    "step_in_backward(model)"
                )
            return False
        late = [torch.nn.parallel.DistributedDataParallel]
        if fsdp := sys.modules.get("torch.distributed.fsdp"):
            late.append(fsdp.FullyShardedDataParallel)
        return any(isinstance(part, tuple(late)) for part in module.modules())

    def _told(self, run: Pass) -> Summary:
        """What grad_norm and stats() are to say; where shards are, once for all of them."""
        found = run.shares.measured.found
        own, tracks = run.stats, any(setting(g, "track_stats") for g in self.param_groups)
        agreement = Agreement(run.shares.params, self.norm_group)
        if tracks and agreement.needed and not run.skipped:
            own = agreement.stats(own)
        named = [*names(self)]
        norm = math.sqrt(found[0]) if found and measures(self.param_groups) else None
        return Summary(norm, [(named[i], grad, update, weight) for i, grad, update, weight in own])
