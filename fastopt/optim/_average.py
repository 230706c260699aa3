"""The averaged weights of an optimizer: reading them, then evaluating with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..arguments import setting
from ..plan import version
from ..ranks import local
from ._record import Record


class Averages(torch.optim.Optimizer):
    """Mixin: what `ema_decay` is for."""

    _record: Record

    def _averaged(self) -> list[tuple[Tensor, Tensor | None]]:
        """Every parameter with its average; None where it has had no step with `ema_decay` yet."""
        params = [p for group in self.param_groups for p in group["params"]]
        averages = [self.state[p].get("ema") if p in self.state else None for p in params]
        on = any(setting(group, "ema_decay") is not None for group in self.param_groups)
        if not on and all(average is None for average in averages):
            name = type(self).__name__
            raise RuntimeError(
                f"this {name} keeps no average of the weights: make it with {name}(..., "
                "ema_decay=0.999), or set group['ema_decay'] in its param_groups"
            )
        return list(zip(params, averages, strict=True))

    def ema_parameters(self) -> Iterator[Tensor]:
        """The averaged weights, in the order of the parameters.

        A parameter that has had no step yet stands for its own average. The tensors are the
        optimizer's own (`state[p]["ema"]`), and go on changing with it.

        Raises:
            RuntimeError: no group has `ema_decay`, and no checkpoint brought averages.
        """
        return iter([p.detach() if ema is None else ema for p, ema in self._averaged()])

    @contextmanager
    def swap_ema(self) -> Iterator[None]:
        """Evaluate with the averaged weights: `with optimizer.swap_ema(): evaluate(model)`.

        Inside, each parameter's memory holds its average, and `state[p]["ema"]` the live weight;
        afterwards, also after an exception, both are back bit for bit.

        Raises:
            RuntimeError: no group has `ema_decay`; the averages are swapped in already; or, inside,
                step() is called, or a checkpoint or a copy is made or loaded: it would have the
                weights and their averages the wrong way round.
        """
        pairs = [(p, ema) for p, ema in self._averaged() if ema is not None]
        record = self._record
        if record.swapped:
            raise RuntimeError("swap_ema() inside swap_ema(): the averages are swapped in already")
        # Of those that nobody has edited, the corrections still hold when all is back.
        valid = [p for p, kept in record.corrected.items() if version(p) == kept]
        begun: list[tuple[Tensor, Tensor, int, list[Tensor] | None]] = []
        try:
            record.swapped = True
            for p, ema in pairs:
                # The narrower of two dtypes does not hold what the other one has to give back.
                kept = None if p.dtype == ema.dtype else [p.detach().clone(), ema.clone()]
                begun.append((p, ema, version(local(ema)), kept))
                _put(p, ema)
            yield
        finally:
            # Backwards: parameters that share memory take back what they gave. Where an interrupt
            # came before the last of these swaps was made, its version tells.
            for p, ema, before, kept in reversed(begun):
                if ema.is_inference() or version(local(ema)) != before:
                    _put(p, ema, kept)
            record.swapped = False
            record.corrected.update({p: version(p) for p in valid})

    def _refuse_inside_swap(self, what: str) -> None:
        if self._record.swapped:
            raise RuntimeError(
                f"{what} inside swap_ema(): the parameters hold their averages, and the averages' "
                "places the weights; leave swap_ema() first"
            )


@torch.no_grad()
def _put(a: Tensor, b: Tensor, values: list[Tensor] | None = None) -> None:
    """These values into both, by default each other's; in one call, so that no interrupt comes
    between its halves.
    """
    held = [local(t) for t in (a, b)]
    given = [local(t) for t in values] if values else [t.clone() for t in reversed(held)]
    torch._foreach_copy_(held, given)
