"""The main job, ``python -m examples.demo``: find_learning_rates and compare, then main.

It trains two nets on scikit-learn's digits with several optimizers, each once with torch.optim and
once with fastopt, and reports accuracies, loss curves and times.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.data import TensorDataset

from . import lr_find, pictures, report
from .composition import ARGUMENTS as PASSES
from .data import load_digits
from .optimizers import OPTIMIZERS
from .options import QUICK_IMAGES, parser
from .train import WARM_UP_STEPS, Settings, observe, train_pair


def progress_bars(console: Console) -> Progress:
    """A bar per training, with its name and count of steps."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=console,
    )


def find_learning_rates(
    console: Console, args: argparse.Namespace, settings: Settings, train: TensorDataset
) -> None:
    """Run the range test for each net and optimizer and plot it."""
    curves = {}
    with progress_bars(console) as progress:
        for net in args.nets:
            for optimizer in args.optimizers:
                task = progress.add_task(f"{net}, {optimizer}", total=lr_find.STEPS)
                on_step = partial(progress.advance, task)
                curve = lr_find.range_test(net, optimizer, settings, train, on_step)
                curves[net, optimizer] = curve
                progress.update(task, total=len(curve.lrs))
    for (net, optimizer), curve in curves.items():
        console.print(f"{net}, {optimizer}: try --lr {curve.suggestion():.1g}")
    lr_find.plot(curves, args.out / "lr_find.png")
    console.print(f"Written to {args.out}: lr_find.png")


def compare(
    console: Console,
    args: argparse.Namespace,
    settings: Settings,
    train: TensorDataset,
    test: TensorDataset,
) -> None:
    """Train each net with each optimizer and both libraries, then write table, JSON, pictures."""
    pairs, histories = [], {}
    with progress_bars(console) as progress:
        for net in args.nets:
            for optimizer in args.optimizers:
                task = progress.add_task(f"{net}, {optimizer}", total=settings.steps(train))
                on_step = partial(progress.advance, task)
                learners = train_pair(net, optimizer, settings, train, on_step)
                pairs.append(report.measure(net, optimizer, learners, test))
                task = progress.add_task(f"{net}, {optimizer}: layers", total=settings.steps(train))
                on_step = partial(progress.advance, task)
                histories[net, optimizer] = observe(net, optimizer, settings, train, on_step)
    console.print(report.table(pairs), report.LEGEND)
    report.write_json(pairs, settings, args.out / "results.json")
    pictures.loss_curves(pairs, args.out / "loss_curves.png")
    pictures.times(pairs, args.out / "times.png")
    pictures.layers(histories, args.out / "layers.png")
    written = "loss_curves.png, times.png, layers.png, results.json"
    console.print(f"Written to {args.out}: {written}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo with the command line ``argv`` (default: the process's); returns 0."""
    command = parser()
    args = command.parse_args(argv)
    torch.set_num_threads(args.threads)
    train, test = load_digits(args.seed)
    if args.quick:
        train = TensorDataset(*train[:QUICK_IMAGES])
    settings = Settings(
        epochs=args.epochs,
        batch_size=args.batch_size or len(train),
        seed=args.seed,
        schedule=args.schedule,
        augmentations=tuple(args.augment),
        overrides={
            name: vars(args)[name] for name in ("lr", "weight_decay", *PASSES) if name in args
        },
    )
    for name in args.optimizers:
        if lacking := settings.overrides.keys() - {*OPTIMIZERS[name].arguments, *PASSES}:
            command.error(f"{name} has no {', '.join(lacking)}")
    if settings.steps(train) <= WARM_UP_STEPS:
        command.error("one step in all, and the first is not timed: ask for more --epochs")
    args.out.mkdir(parents=True, exist_ok=True)
    console = Console()
    if args.lr_find:
        find_learning_rates(console, args, settings, train)
    else:
        compare(console, args, settings, train, test)
    return 0


if __name__ == "__main__":
    sys.exit(main())
