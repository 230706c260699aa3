"""Python that runs in the middle of a step, or beside it: what it replaces must not be followed.

The programs run in a process of their own, as what they would show is a crash, and under Python's
debugging allocator, which overwrites memory as it is freed. A step that meets a change half-way may
raise; it may not read what is gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
import sys, threading
import torch
import fastopt


class Number(torch.Tensor):
    # A learning rate that runs Python when it is read, as any tensor may let another thread do.
    def item(self):
        if inside:
            meddle()
        return 1e-3


def number():
    return torch.tensor(1e-3).as_subclass(Number)


# More dicts of states than Python keeps for reuse when they are freed.
params = [torch.nn.Parameter(torch.ones(7)) for _ in range(120)]
groups = [{"params": params[i : i + 30], "lr": number()} for i in range(0, 120, 30)]
optimizer = fastopt.AdamW(groups)
for p in params:
    p.grad = torch.ones_like(p)
inside = False
optimizer.step()


def steps(count):
    for _ in range(count):
        try:
            optimizer.step()
        except RuntimeError as error:
            assert len(str(error)) < 1000, error


def loop():
    while not done.is_set():
        meddle()

"""

INSIDE = """
inside = True
steps(2)
inside = False
optimizer.step()
"""

BESIDE = """
sys.setswitchinterval(1e-6)
done = threading.Event()
thread = threading.Thread(target=loop)
thread.start()
steps(20)
done.set()
thread.join()
optimizer.step()
"""

REPLACEMENTS = {
    "the dict of each state": """
        for p in params:
            optimizer.state[p] = {k: t.clone() for k, t in optimizer.state[p].items()}
    """,
    "one state of each": """
        for p in params:
            optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"].clone()
    """,
    "the groups": """
        for i, group in enumerate(list(optimizer.param_groups)):
            optimizer.param_groups[i] = {**group, "lr": number()}
    """,
    "the numbers": """
        for group in optimizer.param_groups:
            group["lr"], group["betas"] = number(), (number(), number())
    """,
    "the lists of parameters": """
        for group in optimizer.param_groups:
            group["params"] = list(group["params"])
    """,
    "the gradients": """
        for p in params:
            p.grad = torch.ones_like(p)
    """,
    "all, by a checkpoint": """
        optimizer.load_state_dict(optimizer.state_dict())
    """,
    "the parameters": """
        optimizer.param_groups[-1]["params"][:] = [torch.nn.Parameter(torch.ones(7))]
        optimizer.param_groups[-1]["params"][0].grad = torch.ones(7)
    """,
}


@pytest.mark.parametrize("where", [INSIDE, BESIDE], ids=["inside", "beside"])
def test_replaced_while_a_step_runs(where: str) -> None:
    program = PROGRAM
    for what, replace in REPLACEMENTS.items():
        body = textwrap.indent(textwrap.dedent(replace).strip(), "    ")
        program += f"print({what!r}, flush=True)\ndef meddle():\n{body}\n{where}"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        env=os.environ | {"PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
        timeout=600,  # ends a hang
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines() == list(REPLACEMENTS)
