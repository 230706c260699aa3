"""Does training in compact precision end where float32 ends, and does a second moment decay?

Three nets are trained with AdamW in each format from the same initial weights on the same batches,
once a seed, so that a seed's validation losses are paired. What is claimed of a format is its mean
difference from float32 with the 95 % interval (Student's t), beside the spread that float32 itself
has from seed to seed. All losses are evaluated in float32, on the weights that would be deployed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit  # scikit-learn brings it
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.lr_scheduler import OneCycleLR

import fastopt
from benchmarks.digits import Data, conv, digits, mlp
from benchmarks.method import Plan
from benchmarks.record import Record
from benchmarks.session import Question, Rows
from benchmarks.text import Transformer, source_text, text_batches
from fastopt.formats import decode8


# ---- what is trained ----
def text(seed: int) -> Data:
    """Batches from nine tenths of the text, and places of the last tenth to be judged by."""
    whole = source_text()
    cut = len(whole) * 9 // 10
    return text_batches(seed, whole[:cut], batch=8), next(text_batches(0, whole[cut:], batch=128))


@dataclass(frozen=True)
class Task:
    """A net, what it learns, for how long, and over how many seeds."""

    net: Callable[[], nn.Module]
    data: Callable[[int], Data]
    steps: int
    seeds: int
    lr: float


TASKS = {
    "transformer": Task(partial(Transformer, d=64, layers=2), text, steps=250, seeds=5, lr=3e-3),
    "conv": Task(conv, digits, steps=300, seeds=6, lr=2e-3),
    "mlp": Task(mlp, digits, steps=800, seeds=6, lr=2e-3),
}


# ---- the formats ----
@dataclass(frozen=True)
class Format:
    """The type of weights, activations and gradients, and how an optimizer keeps the rest."""

    dtype: torch.dtype
    options: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Callable[..., torch.optim.Optimizer] = fastopt.AdamW
    nudged: bool = False  # from initial weights that are one rounding off


CODES = "exp_avg_sq_codes"  # the state that is there where the second moment is in codes
FP32, BF16 = torch.float32, torch.bfloat16
REFERENCE = "fp32"
NUDGED = "fp32, begun one rounding off"  # what rounding alone does to a training
CONTROL = "bf16, torch's AdamW"  # to nearest, without masters: this must be seen to end elsewhere
FORMATS = {
    REFERENCE: Format(FP32),
    NUDGED: Format(FP32, nudged=True),
    "fp32, 16-bit states": Format(FP32, {"state_bits": 16}),
    "fp32, 8-bit states": Format(FP32, {"state_bits": 8}),
    "bf16+32, 32-bit states": Format(BF16, {"master_weight_bits": 32, "state_bits": 32}),
    "bf16+32, 8-bit states": Format(BF16, {"master_weight_bits": 32, "state_bits": 8}),
    "bf16+24, 8-bit states": Format(BF16, {"master_weight_bits": 24, "state_bits": 8}),
    "bf16 by noise, 8-bit states": Format(BF16, {"stochastic_rounding": True, "state_bits": 8}),
    CONTROL: Format(BF16, optimizer=torch.optim.AdamW),
}
JUDGED = [name for name in FORMATS if name not in (REFERENCE, NUDGED, CONTROL)]


def loss_of(net: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy, from logits in float32."""
    dtype = next(net.parameters()).dtype
    logits = net(inputs.to(dtype) if inputs.is_floating_point() else inputs)
    return nn.functional.cross_entropy(logits.flatten(0, -2).float(), targets.flatten())


@dataclass(frozen=True)
class Trained:
    """How a training ended."""

    loss: float  # over what was held out, in float32
    held: float  # bytes a parameter that weights and optimizer keep
    compact: float  # share of the parameters whose states are codes of 8 bits


def train(task: Task, form: Format, seed: int, steps: int) -> Trained:
    """Train a net in one format; all that depends on `seed` is the same in every format."""
    from examples.train import nudged

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = task.net()
    if form.nudged:
        with torch.no_grad():
            net = nudged(net)
    net.to(form.dtype)
    batches, held_out = task.data(seed)
    params = list(net.parameters())
    keyed = {"rounding_seed": seed} if form.options else {}
    optimizer = form.optimizer(params, lr=task.lr, **form.options, **keyed)
    schedule = OneCycleLR(optimizer, task.lr, steps, pct_start=0.1, cycle_momentum=False)
    # torch's other kernel takes half the time of a transformer's training in bfloat16 here.
    with sdpa_kernel(SDPBackend.MATH):
        for inputs, targets in islice(batches, steps):
            optimizer.zero_grad()
            loss_of(net, inputs, targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        states = [optimizer.state[param] for param in params]
        elements = sum(param.numel() for param in params)
        coded = sum(state[CODES].numel() for state in states if CODES in state)
        held = sum(t.nbytes for state in states for name, t in state.items() if name != "step")
        held += sum(param.nbytes for param in params)
        with torch.no_grad():
            loss = loss_of(net.float(), *held_out).item()
    return Trained(loss, held / elements, coded / elements)


# ---- what is claimed ----
CONFIDENCE = 0.95


def paired(losses: Mapping[str, list[float]]) -> pd.DataFrame:
    """By format: mean of the differences from REFERENCE, seed by seed, their interval, a verdict.

    ok: the interval lies within REFERENCE's spread over seeds; short: it does not, and zero is
    outside of it; noisy: it does not, and zero is inside.
    """
    found = pd.DataFrame(losses)
    differences = found.drop(columns=REFERENCE).sub(found[REFERENCE], axis=0)
    width = differences.sem() * stdtrit(len(found) - 1, (1 + CONFIDENCE) / 2)
    shown = pd.DataFrame({"mean": differences.mean()})
    shown["low"], shown["high"] = shown["mean"] - width, shown["mean"] + width
    within = shown.abs().max(axis=1) <= found[REFERENCE].std()
    shown["verdict"] = np.select([within, shown["mean"].abs() > width], ["ok", "short"], "noisy")
    return shown


def overall(verdicts: Mapping[str, str]) -> str:
    """Of a net: the worst of what is JUDGED; noisy where not even CONTROL is told apart."""
    found = {verdicts[name] for name in JUDGED}
    if "short" in found:
        return "short"
    return "noisy" if "noisy" in found or verdicts[CONTROL] != "short" else "ok"


def run_task(name: str, plan: Plan, formats: Mapping[str, Format] = FORMATS) -> Record:
    """Train one net in every format with every seed."""
    task = TASKS[name]
    steps, seeds = (3, 2) if plan.quick else (task.steps, task.seeds)
    trained = {
        form: [train(task, how, seed, steps) for seed in range(seeds)]
        for form, how in formats.items()
    }
    losses = {form: [one.loss for one in every] for form, every in trained.items()}
    wrong = [form for form, every in losses.items() if not np.isfinite(every).all()]
    judgement = "right" if plan.quick else overall(paired(losses)["verdict"])
    return {
        "work": name,
        "steps": steps,
        "elements": sum(param.numel() for param in task.net().parameters()),
        "losses": losses,
        "held": {form: every[0].held for form, every in trained.items()},
        "compact": {form: every[0].compact for form, every in trained.items()},
        "wrong": wrong,
        "samples": {},
        "verdict": "wrong" if wrong else judgement,
    }


# ---- decay ----
BETA2 = 0.999
SCALES = [10.0**-k for k in range(1, 9)]
DROP = 0.1
STEPS = 5000  # as many before the drop as after it
ALLOWED = 0.05


def decay(bits: int | None, steps: int) -> list[float]:
    """By gradient scale: median of sqrt(v) over its exact value where the gradients dropped.

    That is at one of every two neighbours; the other keeps their block's scale where it was.
    """
    params = [torch.zeros(64, 64, requires_grad=True) for _ in SCALES]
    optimizer = fastopt.AdamW(params, betas=(0.9, BETA2), state_bits=bits)
    source = torch.Generator().manual_seed(0)
    sizes = torch.tensor(SCALES).view(-1, 1, 1) * torch.ones(64, 64)
    exact = torch.zeros(len(SCALES), 64, 64, dtype=torch.float64)
    for step in range(2 * steps):
        if step == steps:
            sizes[..., ::2] *= DROP
        grads = torch.randn(sizes.shape, generator=source) * sizes
        exact.mul_(BETA2).addcmul_(grads.double(), grads.double(), value=1 - BETA2)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
    kept = torch.stack([second_moment(optimizer.state[param]) for param in params])
    of = (kept.double() / exact).sqrt()[..., ::2].flatten(1)
    return [float(median) for median in of.median(dim=1).values]


def second_moment(state: Mapping[str, Tensor]) -> Tensor:
    """The numbers that a state stands for; its codes are read by the reference in NumPy."""
    if CODES not in state:
        return state["exp_avg_sq"]
    kept, scales = state[CODES], state["exp_avg_sq_scale"].flatten().numpy()
    return torch.from_numpy(decode8("positive", kept.flatten().numpy(), scales)).view_as(kept)


def run_decay(bits: int, plan: Plan) -> Record:
    """The medians for states of so many bits."""
    steps = 20 if plan.quick else STEPS
    medians = decay(bits, steps)
    off = max(abs(median - 1) for median in medians)
    judgement = "right" if plan.quick else "ok" if off <= ALLOWED else "short"
    return {
        "work": "decay",
        "bits": bits,
        "steps": steps,
        "scales": SCALES,
        "medians": medians,
        "samples": {},
        "verdict": judgement if math.isfinite(off) else "wrong",
    }


# ---- how it is shown ----
def table(found: Record) -> pd.DataFrame:
    """A line a net and format, then one a decay; bold is what is shown to be short."""
    interval = f"difference [{CONFIDENCE:.0%} interval]"
    columns = ["what", "format", "B/param", "result", interval, "allowed", ""]
    lines: list[tuple[str, ...]] = []
    for row in found["rows"]:
        if row["work"] == "decay":
            medians = pd.Series(row["medians"])
            low, high = (f"{end - 1:+.3f}" for end in (medians.min(), medians.max()))
            result = f"{medians.min():.3f} to {medians.max():.3f}"
            said = f"{low} to {high}", f"±{ALLOWED:g}", row["verdict"]
            lines.append((DECAYED, f"{row['bits']}-bit states", "", result, *said))
            continue
        losses, shown = pd.DataFrame(row["losses"]), paired(row["losses"])
        spread = losses[REFERENCE].std()
        what = f"{row['work']}, {len(losses)} seeds, {max(row['compact'].values()):.0%} compact"
        for form, loss in losses.mean().items():
            cells = (what, str(form), f"{row['held'][form]:.2f}")
            if form == REFERENCE:
                lines.append((*cells, f"{loss:.4f} ± {spread:.4f}", "", "", ""))
            elif form in row["wrong"]:
                lines.append((*cells, "**wrong**", "", "", "wrong"))
            else:
                one = shown.loc[form]
                bold = "**" if one["verdict"] == "short" else ""
                mean = f"{bold}{one['mean']:+.4f}{bold} [{one['low']:+.4f}, {one['high']:+.4f}]"
                lines.append((*cells, f"{loss:.4f}", mean, f"±{spread:.4f}", one["verdict"]))
    return pd.DataFrame(lines, columns=columns)


def rows(arguments: argparse.Namespace, plan: Plan) -> Rows:
    trainings: dict[str, Any] = {name: partial(run_task, name, plan) for name in TASKS}
    return trainings | {f"decay/{bits}-bit": partial(run_decay, bits, plan) for bits in (8, 16)}


DECAYED = "sqrt(v) / exact, gradients down tenfold"
NOTES = [
    "result: validation loss, the mean over seeds; fp32's ± is its standard deviation over them, "
    "which is what is allowed. Difference: the mean of loss - fp32's, from equal weights on equal "
    "batches. ok: the whole interval is allowed; short: it is not, and 0 is outside of it; "
    "noisy: it is not, and 0 is inside",
    f"{CONTROL} is a control, which rounds to nearest without masters: a net on which it is not "
    "short tells no formats apart. How states are rounded, such short trainings hardly tell: that "
    "is what decay is for",
    "bf16+24: bfloat16 weights with masters of 24 bits; by noise: stochastic_rounding; compact: "
    "share of the parameters that 8-bit states apply to",
    f"decay: half of the gradients drop tenfold, beta2 {BETA2:g}; {STEPS} steps later, the least "
    f"and largest median over gradients of {SCALES[-1]:g} to {SCALES[0]:g}",
]
QUESTION = Question(
    "quality",
    "trainings in compact precision: final losses against float32's; decay of second moments",
    rows,
    table,
    plan=None,
    forces=False,
    about=lambda: {"notes": NOTES},
)
