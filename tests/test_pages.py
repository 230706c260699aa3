"""Every block of Python in the README and in docs/ is run, in order, in a namespace a page; what a
page says that a block prints is compared with what it prints. Then the links.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from processes import run
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import fastopt

ROOT = Path(__file__).parents[1]
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")]
PAGES = {p.relative_to(ROOT).as_posix(): p for p in [*TOP, *sorted((ROOT / "docs").rglob("*.md"))]}

# Blocks that are not run here, by page and a line of theirs, "" for all of a page; and why.
NOT_RUN = {
    ("docs/trainers.md", ""): "with the real packages: tests/clients/test_docs.py",
}
# Blocks that are run in each of several processes, by page and a line; how many.
IN_PROCESSES = {
    ("docs/distributed.md", "FullyShardedDataParallel("): 2,
    ("docs/distributed.md", "CPUOffloadPolicy("): 2,
}
# Blocks that are a program for several processes, by page and a line; how many processes.
PROGRAMS = {
    ("docs/tutorial/sharded.md", "fully_shard(model"): 2,
}
# What such a program finds in the environment where it is started as one process, and run here.
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
# Commands in blocks of sh that are run as they stand; all others install, build, measure or need a
# file that is not here.
COMMANDS = ["python -m fastopt"]


class Block(NamedTuple):
    """A block of code, its line in the page, and what the page says that it prints."""

    code: str
    line: int
    prints: str | None


def blocks(page: str, language: str = "python") -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    started = (
        r"(?:\n[^`\n]*:\n\n```sh\n[^`]*```\n)?"  # a program, by the command that stands between
    )
    told = rf"(?:{started}\n```text\n(.*?)^```\n)?"
    found = re.finditer(rf"^```{language}\n(.*?)^```\n{told}", text + "\n", re.M | re.S)
    return [plain(Block(m[1], text[: m.start(1)].count("\n") + 1, m[2])) for m in found]


def plain(block: Block) -> Block:
    """A block of a session, `>>>` and what is printed, as one that is followed by that."""
    if not block.code.startswith(">>> "):
        return block
    lines = block.code.splitlines()
    code = [line[4:] for line in lines if line.startswith((">>> ", "... "))]
    prints = [line for line in lines if not line.startswith((">>> ", "... "))]
    return block._replace(code="\n".join(code), prints="\n".join(prints))


def told_of(table: dict[tuple[str, str], Any], page: str, block: Block) -> Any:
    """What a table says of a block, or None."""
    for (of, line), said in table.items():
        if of == page and (line == "" or line in block.code):
            return said
    return None


def given(page: str) -> dict[str, Any]:
    """What pages that are not whole programs take for given: a model, batches and the like."""
    x, y = torch.randn(64, 8), torch.arange(64) % 3
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.Linear(64, 64))
    model.append(torch.nn.Linear(64, 3))
    names: dict[str, Any] = {"__name__": "docs", "fastopt": fastopt, "torch": torch}
    if page.startswith("docs/tutorial/"):
        return {"__name__": "docs"}
    names |= {"model": model, "cross_entropy": cross_entropy, "clip_grad_norm_": clip_grad_norm_}
    names |= {"AveragedModel": AveragedModel, "get_ema_multi_avg_fn": get_ema_multi_avg_fn}
    names["batches"] = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)]

    def evaluate(net: torch.nn.Module) -> float:
        net.to(torch.float32)
        return (net(x).argmax(1) == y).float().mean().item()

    def loss_of(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        dtype = next(names["model"].parameters()).dtype
        return cross_entropy(names["model"](batch[0].to(dtype)), batch[1])

    names["evaluate"], names["loss_of"] = evaluate, loss_of
    names["optimizer"] = fastopt.AdamW(model.parameters(), lr=1e-3)
    first, last = names["batches"][:-1], names["batches"][-1]
    names["first_ones"], names["last_one"], names["batch"] = first, last, last
    return names


class Layered(torch.nn.Module):
    """With layers to shard by."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(2)))


def given_in_processes() -> dict[str, Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        FullyShardedDataParallel,
        fully_shard,
    )
    from torch.distributed.optim import ZeroRedundancyOptimizer

    names = {"dist": dist, "fully_shard": fully_shard, "model": Layered(), "stage": Layered()}
    names["mesh"] = init_device_mesh("cpu", (2, 1), mesh_dim_names=("pipeline", "data"))
    # By default both ask for an accelerator.
    names["CPUOffloadPolicy"] = partial(CPUOffloadPolicy, pin_memory=False)
    names["FullyShardedDataParallel"] = partial(
        FullyShardedDataParallel, device_id=torch.device("cpu")
    )
    names["ZeroRedundancyOptimizer"] = ZeroRedundancyOptimizer
    return names


def before(page: str, block: Block, names: dict[str, Any]) -> None:
    """What a block takes for given anew: a loss that has not been used."""
    if re.search(r"^\s*loss\.backward\(\)", block.code, re.M) and "loss =" not in block.code:
        optimizer = names["optimizer"]
        optimizer.zero_grad()
        names["loss"] = names["loss_of"](names["batch"])


def agree(said: str, printed: str) -> None:
    """The same words, and numbers that are near: the last digits depend on the processor."""
    said, printed = (re.sub(r"avx512|avx2|baseline|neon", "isa", text) for text in (said, printed))
    number = r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?"
    assert re.sub(number, "#", said.strip()) == re.sub(number, "#", printed.strip())
    found = [re.findall(number, text) for text in (said, printed)]
    for one, other in zip(*([float(n.replace(",", "")) for n in of] for of in found), strict=True):
        assert other == pytest.approx(one, rel=0.05, abs=0.01), (said, printed)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def run_program(block: Block, processes: int, folder: Path) -> str:
    """As torchrun starts it; what the processes print."""
    (folder / "train.py").write_text(block.code, encoding="utf-8")
    shared = ALONE | {"WORLD_SIZE": str(processes), "MASTER_PORT": str(free_port())}
    shared |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "train.py"],
            cwd=folder,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    try:
        ends = [worker.communicate(timeout=120) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * processes, ends
    return "".join(out for out, _ in ends)


def run_block(page: str, block: Block, names: dict[str, Any]) -> str:
    """What it prints."""
    before(page, block, names)
    source = "\n" * block.line + block.code  # so that a traceback has the page's lines
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(source, page, "exec"), names)
    return out.getvalue()


def run_in_processes(page: str, several: list[Block]) -> None:
    for block in several:
        run_block(page, block, given(page) | given_in_processes())


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_blocks(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # for what they write
    for name, value in ALONE.items() if page == "docs/tutorial/sharded.md" else ():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    names = given(page)
    several = [block for block in blocks(page) if told_of(IN_PROCESSES, page, block)]
    for block in blocks(page):
        if told_of(NOT_RUN, page, block) or block in several:
            continue
        if processes := told_of(PROGRAMS, page, block):
            printed = run_program(block, processes, tmp_path)
        else:
            printed = run_block(page, block, names)
        if block.prints is not None:
            agree(block.prints, printed)
    if several:
        run(told_of(IN_PROCESSES, page, several[0]), run_in_processes, page, several)


def test_tables_are_of_blocks() -> None:
    for page, line in (*NOT_RUN, *IN_PROCESSES, *PROGRAMS):
        assert any(line in block.code for block in blocks(page)), (page, line)


def test_commands() -> None:
    shown = [
        line for page in PAGES for block in blocks(page, "sh") for line in block.code.split("\n")
    ]
    shown = [line.split("  #")[0].strip() for line in shown]
    for command in COMMANDS:
        assert command in shown
        arguments = [sys.executable, *command.split()[1:]]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(arguments, env=environment, check=True, stdout=subprocess.DEVNULL)


def anchors(path: Path) -> set[str]:
    """Of the headings, as a forge and the site make them."""
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = set()
    for heading in re.findall(r"^#+ (.*)", text, re.M):
        kept = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower())
        found.add(kept.strip().replace(" ", "-"))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    """Within the repository; those elsewhere are only looked at, as nothing is fetched."""
    text = re.sub(r"^```.*?^```", "", PAGES[page].read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[^\s<>]*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        to = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert to.exists(), target
        if anchor:
            assert anchor in anchors(to), target
