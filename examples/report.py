"""What a demo has measured: Measurement, Pair, measure; as text: LEGEND, table, write_json."""

import dataclasses
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch.utils.data import TensorDataset

import fastopt

from .optimizers import LIBRARIES
from .train import CONTROL, Learner, Settings


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One training with one library. The seconds leave the warm-up step out; ``losses`` do not."""

    test_accuracy: float
    median_step_seconds: float
    step_seconds: float
    all_seconds: float
    losses: list[float]


@dataclasses.dataclass(frozen=True)
class Pair:
    """The trainings of one net with one optimizer, one per library, from equal beginnings.

    ``largest_loss_difference`` is over all steps and absolute; ``control_loss_difference`` is the
    same between torch and the CONTROL; ``step_speed_up`` is the median time of torch's
    ``optimizer.step`` over that of fastopt's.
    """

    net: str
    optimizer: str
    largest_loss_difference: float
    control_loss_difference: float
    step_speed_up: float
    libraries: dict[str, Measurement]


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    """The largest absolute difference of two curves at the same step."""
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def measure(net: str, optimizer: str, learners: Mapping[str, Learner], test: TensorDataset) -> Pair:
    """The figures of a pair that ``train_pair`` has trained."""
    reference, ours = learners["torch"], learners["fastopt"]
    return Pair(
        net,
        optimizer,
        largest_difference(reference.losses, ours.losses),
        largest_difference(reference.losses, learners[CONTROL].losses),
        reference.median_step() / ours.median_step(),
        {
            library: Measurement(
                learners[library].accuracy(test),
                learners[library].median_step(),
                sum(learners[library].step_seconds),
                sum(learners[library].all_seconds),
                learners[library].losses,
            )
            for library in LIBRARIES
        },
    )


# What the short headings of the table mean.
LEGEND = """\
acc.: accuracy on the test images
loss gap: largest absolute difference from torch's training-loss curve;
  in torch's own row: of torch begun with all weights one rounding step off
step: median time in one optimizer.step; steps: the sum of them
all: forward, backward and steps; the first batch is not timed
step speed-up: torch's median step / fastopt's"""


def table(pairs: Sequence[Pair]) -> Table:
    """One row per training; LEGEND explains the headings."""
    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("net", "optimizer", "library"):
        result.add_column(heading, no_wrap=True)
    for heading in (
        "test\nacc.",
        "loss\ngap",
        "step,\nus",
        "steps,\ns",
        "all,\ns",
        "step\nspeed-up",
    ):
        result.add_column(heading, justify="right", no_wrap=True)
    for pair in pairs:
        for library, run in pair.libraries.items():
            compares = library != "torch"
            gap = pair.largest_loss_difference if compares else pair.control_loss_difference
            result.add_row(
                pair.net,
                pair.optimizer,
                library,
                f"{run.test_accuracy:.1%}",
                f"{gap:.1e}",
                f"{run.median_step_seconds * 1e6:.0f}",
                f"{run.step_seconds:.3f}",
                f"{run.all_seconds:.2f}",
                f"{pair.step_speed_up:.2f}x" if compares else "",
                end_section=compares,
            )
    return result


def write_json(pairs: Sequence[Pair], settings: Settings, path: Path) -> None:
    """All that was measured, each step's loss included, with the settings and the machine."""
    results: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "environment": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "fastopt": fastopt.__version__,
            "machine": platform.machine(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
        },
        "pairs": [dataclasses.asdict(pair) for pair in pairs],
    }
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
