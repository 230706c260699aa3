"""The demo's command line: the types of its arguments, then parser."""

import argparse
from pathlib import Path

from .data import AUGMENTATIONS, DEFAULT_AUGMENTATIONS
from .nets import NETS
from .optimizers import OPTIMIZERS, SCHEDULES

QUICK_IMAGES = 256


def positive_int(text: str) -> int:
    """A count of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def batch_size(text: str) -> int | None:
    """A positive count, or None for "full": one batch of all the images."""
    return None if text.lower() == "full" else positive_int(text)


def parser() -> argparse.ArgumentParser:
    """The command line; an option that was not given and shows no default is absent."""
    result = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description="Train small nets on handwritten digits with torch.optim and with fastopt, in "
        "lock-step and from the same seed, and compare accuracy, loss curves and time.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    absent = argparse.SUPPRESS
    add = result.add_argument_group("what to train").add_argument
    add(
        "--nets",
        nargs="+",
        type=str.lower,
        choices=list(NETS),
        default=list(NETS),
        help="mlp: 784-10(relu)-10(softmax); conv: two convolutions, then 1568-64-10",
    )
    add(
        "--optimizers",
        nargs="+",
        type=str.lower,
        choices=list(OPTIMIZERS),
        default=["sgd", "adam", "rmsprop"],
        help="optimizers by name, in upper or lower case; muon takes the matrices alone, and AdamW "
        "trains the rest beside it",
    )
    add("--epochs", type=positive_int, default=10, help="passes over the training images")
    add(
        "--batch-size",
        type=batch_size,
        default=32,
        metavar="N|full",
        help="images per step: 1 is stochastic gradient descent, full is batch gradient descent",
    )
    add("--seed", type=int, default=0, help="of the weights, the split, batches and augmentation")
    add("--quick", action="store_true", help=f"train on {QUICK_IMAGES} images only")

    add = result.add_argument_group("optimizer arguments, for every optimizer").add_argument

    def defaults(argument: str) -> str:
        of = ", ".join(
            f"{name} {choice.arguments[argument]}"
            for name, choice in OPTIMIZERS.items()
            if argument in choice.arguments
        )
        return f"(default: {of})"

    add("--lr", type=float, default=absent, help=f"learning rate {defaults('lr')}")
    add(
        "--l2",
        dest="weight_decay",
        metavar="L2",
        type=float,
        default=absent,
        help="L2 penalty, torch's weight_decay; to adamw, lion and muon a decoupled one "
        + defaults("weight_decay"),
    )
    add(
        "--clip",
        dest="max_grad_norm",
        metavar="NORM",
        type=float,
        default=absent,
        help="clip gradients to this L2 norm (default: no clipping)",
    )
    add("--l1", type=float, default=absent, help="L1 penalty (default: 0)")
    add(
        "--ema",
        dest="ema_decay",
        metavar="DECAY",
        type=float,
        default=absent,
        help="test with an exponential moving average of the weights (default: no average)",
    )
    add("--schedule", choices=list(SCHEDULES), default="cosine", help="learning-rate schedule")
    add(
        "--lr-find",
        action="store_true",
        help="plot the loss over a growing learning rate (Smith 2015), for choosing --lr, and stop",
    )

    either = result.add_argument_group("data augmentation").add_mutually_exclusive_group()
    either.add_argument(
        "--augment",
        nargs="+",
        choices=list(AUGMENTATIONS),
        default=list(DEFAULT_AUGMENTATIONS),
        help="which to apply, in this order (no flip unless asked: a mirrored digit is no digit)",
    )
    either.add_argument(
        "--no-augment",
        dest="augment",
        action="store_const",
        const=[],
        default=absent,
        help="train on the images as they are",
    )

    add = result.add_argument_group("machine and output").add_argument
    add(
        "--threads",
        type=positive_int,
        default=1,
        help="CPU threads; nets this small gain little from more, and lose much on a busy machine",
    )
    add("--out", type=Path, default=Path("build/demo"), help="folder for pictures and results")
    return result
