"""Training that stops on some processes and goes on on others: the parts, the checkpoints, main.

    torchrun --nproc-per-node 2 -m examples.distributed
    torchrun --nproc-per-node 4 -m examples.distributed --resume

The first command trains one of the demo's nets, sharded with FSDP2, leaves a checkpoint halfway and
another at the end. The second one goes on from halfway, on as many processes as it is given, and
compares its end with the first one's.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import TensorDataset

import fastopt

from .data import batches, load_digits
from .nets import NETS
from .options import positive_int
from .train import new_net


# ---- the parts ----
def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="torchrun --nproc-per-node N -m examples.distributed",
        description="Train a net of the demo, sharded over N processes, and leave a checkpoint "
        "halfway; with --resume, go on from there on another N, and compare the ends.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = result.add_argument
    add("--net", choices=list(NETS), default="conv", help="mlp or conv, as in examples.demo")
    add("--steps", type=positive_int, default=80, help="of the whole training")
    add("--batch-size", type=positive_int, default=64, metavar="N", help="over all processes")
    add("--seed", type=int, default=0, help="of the weights, the split and the batches")
    add("--resume", action="store_true", help="go on from the checkpoint in --out")
    add("--out", type=Path, default=Path("build/distributed"), help="folder of the checkpoints")
    return result


def sharded(net: nn.Module) -> nn.Module:
    """The net with every layer's parameters cut into rows, a part on each process."""
    for layer in net.children():
        if any(True for _ in layer.parameters()):
            fully_shard(layer)
    fully_shard(net)
    return net


def train(
    net: nn.Module, optimizer: torch.optim.Optimizer, data: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Learn from batches, of which each process takes its share; returns the last one's loss.

    FSDP2 averages gradients over processes: each one's sum, times their number and over the size
    of the batch, makes that the mean over the batch, however unequal the shares.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    loss = torch.zeros(())
    for images, labels in data:
        optimizer.zero_grad()
        own = [t.tensor_split(size)[rank] for t in (images, labels)]
        summed = nn.functional.cross_entropy(net(own[0]), own[1], reduction="sum")
        loss = summed / len(labels)
        (loss * size).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    loss = loss.detach()
    dist.all_reduce(loss)
    return loss.item()


@torch.no_grad()
def accuracy(net: nn.Module, data: TensorDataset) -> float:
    """Share of the images that the net classifies correctly: each process looks at all of them."""
    images, labels = data.tensors
    return float((net(images).argmax(dim=1) == labels).double().mean())


# ---- the checkpoints ----
def save(net: nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> None:
    """Every process writes what it holds."""
    model, state = get_state_dict(net, optimizer)
    state_dict_saver.save({"model": model, "optimizer": state}, checkpoint_id=place)


def load(net: nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> None:
    """Every process reads what it now holds, whoever wrote it."""
    model, state = get_state_dict(net, optimizer)
    state_dict_loader.load({"model": model, "optimizer": state}, checkpoint_id=place)
    set_state_dict(net, optimizer, model_state_dict=model, optim_state_dict=state)


def difference(net: nn.Module, optimizer: torch.optim.Optimizer, place: Path) -> float:
    """The largest between a checkpoint's weights, averages and states, and those here."""
    model, state = get_state_dict(net, optimizer)
    here = [*leaves(model), *leaves(state["state"])]
    kept = [full(t).clone() for t in here]
    state_dict_loader.load({"model": model, "optimizer": state}, checkpoint_id=place)
    there = [full(t) for t in (*leaves(model), *leaves(state["state"]))]
    return max((a - b).abs().max().item() for a, b in zip(kept, there, strict=True))


def leaves(found: Any) -> list[Tensor]:
    """All tensors of a state dict, in the order of their names."""
    if isinstance(found, Tensor):
        return [found]
    return [t for name in sorted(found) for t in leaves(found[name])]


def full(t: Tensor) -> Tensor:
    return t.full_tensor() if isinstance(t, DTensor) else t


# ---- main ----
def main(argv: Sequence[str] | None = None) -> int:
    """Train, or go on, with the command line ``argv`` (default: the process's); returns 0."""
    args = parser().parse_args(argv)
    dist.init_process_group("gloo", timeout=timedelta(minutes=5))
    torch.set_num_threads(1)
    size = dist.get_world_size()
    console = Console(quiet=dist.get_rank() > 0)
    images, test = load_digits(args.seed)
    epochs = -(-args.steps * args.batch_size // len(images)) + 1
    data = list(
        batches(images, batch_size=args.batch_size, epochs=epochs, augmentations=(), seed=args.seed)
    )[: args.steps]
    net = sharded(new_net(args.net, args.seed))
    optimizer = fastopt.AdamW(
        net.parameters(), lr=1e-3, max_grad_norm=1.0, ema_decay=0.95, skip_nonfinite=True
    )
    console.print(f"{args.net}, world size {size}: {fastopt.explain(optimizer)}")
    halfway, middle, end = args.steps // 2, args.out / "halfway", args.out / "end"
    if args.resume:
        load(net, optimizer, middle)
    else:
        train(net, optimizer, data[:halfway])
        save(net, optimizer, middle)
    loss = train(net, optimizer, data[halfway:])
    with optimizer.swap_ema():
        right = accuracy(net, test)
    console.print(f"loss {loss:.4f}, accuracy of the averaged weights {right:.1%}")
    if args.resume:
        apart = difference(net, optimizer, end)
        why = "" if apart == 0 else ": gradients are summed in another order on other processes"
        told = "equal to the bit" if apart == 0 else f"at most {apart:.1e} apart"
        console.print(f"against the run that was not interrupted: {told}{why}")
    else:
        save(net, optimizer, end)
        console.print(f"Written to {args.out}: halfway, end")
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
