"""docs/faq.md: every message that it quotes is raised here, by what its heading stands for."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastopt

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")


def weight(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
    param = nn.Parameter(torch.ones(*shape, dtype=dtype))
    param.grad = torch.ones_like(param)
    return param


def named(**params: Tensor) -> list[tuple[str, Tensor]]:
    return [*params.items()]


def imported(prepare: str, **environment: str) -> None:
    """In a process of its own: its error, as an exception of that name."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, torch\n{prepare}\nimport fastopt"],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    name, _, message = done.stderr.strip().splitlines()[-1].partition(": ")
    raise {"ImportError": ImportError, "ValueError": ValueError}[name](message)


def optimizer_of(param: Tensor, **arguments: Any) -> fastopt.AdamW:
    return fastopt.AdamW(named(weight=param), **arguments)


def core() -> None:
    imported("sys.modules['fastopt._core'] = None")


def gil() -> None:
    imported("sys._is_gil_enabled = lambda: False")


def isa() -> None:
    imported("", FASTOPT_ISA="sse")


def backend() -> None:
    os.environ["FASTOPT_BACKEND"] = "cuda"
    optimizer_of(weight(4)).step()


def triton() -> None:
    os.environ["FASTOPT_BACKEND"] = "triton"
    optimizer_of(weight(4)).step()


def out_of_range() -> None:
    optimizer_of(weight(4), max_grad_norm=-1.0)


def both_roundings() -> None:
    param = weight(4, dtype=torch.bfloat16)
    optimizer_of(param, stochastic_rounding=True, master_weight_bits=24)


def wide_parameter() -> None:
    optimizer_of(weight(64, 64, dtype=torch.float64), state_bits=8)


def whole_rule() -> None:
    fastopt.Muon([{"params": [weight(4, 4)], "state_bits": 8}])


def own_kernels() -> None:
    optimizer_of(weight(64, 64), state_bits=8, differentiable=True).step()


def sparse() -> None:
    param = weight(4, 2)
    param.grad = torch.ones(4, 2).to_sparse()
    optimizer_of(param).step()


def state() -> None:
    param = weight(4)
    optimizer = optimizer_of(param)
    optimizer.step()
    optimizer.state[param]["exp_avg"] = torch.ones(3)
    optimizer.step()


def shared() -> None:
    param = weight(4)
    param.grad = param.detach()
    optimizer_of(param).step()


class Rate(torch.Tensor):
    """A learning rate that, when it is read, runs Python, which steps again."""

    optimizer: fastopt.AdamW

    def item(self) -> Any:
        self.optimizer.step()


def running() -> None:
    optimizer = optimizer_of(weight(4))
    optimizer.step()
    optimizer.param_groups[0]["lr"] = rate = torch.tensor(1e-3).as_subclass(Rate)
    rate.optimizer = optimizer
    optimizer.step()


def no_average() -> None:
    next(optimizer_of(weight(4)).ema_parameters())


def inside_swap() -> None:
    optimizer = optimizer_of(weight(4), ema_decay=0.9)
    optimizer.step()
    with optimizer.swap_ema():
        optimizer.state_dict()


def no_statistics() -> None:
    optimizer_of(weight(4)).stats()


def evaluation() -> None:
    optimizer = fastopt.AdamWScheduleFree([weight(4)])
    optimizer.eval()
    optimizer.step()


def in_backward(**arguments: Any) -> tuple[fastopt.AdamW, Tensor]:
    param = nn.Parameter(torch.ones(4))
    return optimizer_of(param, **arguments), param


def norm_first() -> None:
    optimizer, param = in_backward(max_grad_norm=1.0)
    with optimizer.step_in_backward():
        param.sum().backward()


def second_gradient() -> None:
    optimizer, param = in_backward()
    for _ in range(2):  # only then it is known which gradients come together
        with optimizer.step_in_backward():
            param.sum().backward()
    with optimizer.step_in_backward():
        param.sum().backward()
        param.sum().backward()


def gradient_there() -> None:
    optimizer, param = in_backward(max_grad_norm=1.0)
    param.sum().backward()
    with optimizer.norm_in_backward():
        param.sum().backward()


def not_ours() -> None:
    fastopt.memory(torch.optim.AdamW([weight(4)]))


def functional() -> None:
    fastopt.functional.adam(
        *([[]] * 6), amsgrad=False, beta1=0.9, beta2=0.999, lr=1e-3, weight_decay=0, eps=1e-8,
        maximize=False, capturable=True,
    )  # fmt: skip


WEIGHT = "parameter 'weight' (param_groups[0]['params'][0])"
# By what the page has as the message's beginning.
PROVOKED: dict[str, Callable[[], Any]] = {
    "ImportError: fastopt's compiled core": core,
    "ImportError: fastopt needs the GIL": gil,
    "ValueError: FASTOPT_ISA": isa,
    "ValueError: FASTOPT_BACKEND": backend,
    "RuntimeError: FASTOPT_BACKEND=triton": triton,
    "ValueError: max_grad_norm is": out_of_range,
    "ValueError: stochastic_rounding": both_roundings,
    "ValueError: parameter 'weight'": wide_parameter,
    "ValueError: Muon": whole_rule,
    "RuntimeError: state_bits": own_kernels,
    "RuntimeError: AdamW does not support sparse": sparse,
    f"RuntimeError: AdamW.step(): {WEIGHT}: its state": state,
    f"RuntimeError: AdamW.step(): {WEIGHT}: its gradient": shared,
    "RuntimeError: this optimizer's": running,
    "RuntimeError: this AdamW keeps": no_average,
    "RuntimeError: state_dict() inside": inside_swap,
    "RuntimeError: this AdamW tracks": no_statistics,
    "RuntimeError: AdamWScheduleFree": evaluation,
    "RuntimeError: max_grad_norm and": norm_first,
    f"RuntimeError: {WEIGHT} gets": second_gradient,
    f"RuntimeError: {WEIGHT} has": gradient_there,
    "TypeError: memory()": not_ours,
    "RuntimeError: fastopt.functional": functional,
}


def quoted() -> dict[str, str]:
    """The page's messages, each on one line, by what they begin with here."""
    messages = [" ".join(m.split()) for m in re.findall(r"^```text\n(.*?)^```", TEXT, re.M | re.S)]
    return {start: m for start in PROVOKED for m in messages if m.startswith(start)}


def test_every_message_is_provoked() -> None:
    assert len(re.findall(r"^```text\n", TEXT, re.M)) == len(PROVOKED)
    assert quoted().keys() == PROVOKED.keys()


@pytest.mark.parametrize("start", PROVOKED)
def test_message(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTOPT_BACKEND", "auto")  # put back what provoking sets
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(Exception) as raised:  # noqa: PT011
        PROVOKED[start]()
    found = f"{type(raised.value).__name__}: {' '.join(str(raised.value).split())}"
    said = ".*".join(map(re.escape, quoted()[start].split(" ... ")))  # what depends on the machine
    assert re.fullmatch(said, found), found
