"""The CPU table on the terminal, from its record alone: cells, table, live display."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from benchmarks.record import Record

COLUMNS = (
    ("work", "left"),
    ("optimizer", "left"),
    ("dtype", "left"),
    ("B/param", "right"),
    ("fastopt us", "right"),
    ("peer", "left"),
    ("peer us", "right"),
    ("ratio", "right"),
    ("goal", "right"),
    ("", "left"),
    ("time/floor", "right"),
    ("GB/s", "right"),
)
# A file or pipe has no width of its own; all columns with their contents need this much.
PLAIN_WIDTH = 150

# Beside one other process on all cores the same step took twice as long: threads wait for theirs.
BUSY = 0.5

STYLES = {
    "ok": "green",
    "right": "green",
    "short": "yellow",
    "noisy": "magenta",
    "wrong": "bold red",
}


def _microseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}"


def _cells(row: Record) -> list[str | Text]:
    verdict = Text(row["verdict"], STYLES[row["verdict"]])
    goal = f"{row['goal']:g}x"
    about = [row["work"], row["algorithm"], row["dtype"], str(row["bytes_per_param"])]
    if row["verdict"] == "wrong":
        return [*about, "", ", ".join(row["wrong"]), "", "", goal, verdict, "", ""]
    ratio, floor, times = row["ratio"], row["floor_ratio"], row["times"]
    fast = times["fastopt"]["median"]
    reached = f"{ratio['median']:.2f}x [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"
    above = f"{floor['median']:.2f}"
    if row["floor_goal"]:
        above += f" (<= {row['floor_goal']:.2f})"
    return [
        *about,
        _microseconds(fast),
        row["peer"].removeprefix("torch."),
        _microseconds(times[row["peer"]]["median"]),
        Text(reached, STYLES["short"] if "ratio" in row["missed"] else ""),
        goal,
        verdict,
        Text(above, STYLES["short"] if "floor" in row["missed"] else ""),
        f"{row['bytes_per_param'] * row['elements'] / fast * 1e-9:.1f}",
    ]


def table(record: Record) -> Table:
    """The table of a whole record, finished or not."""
    machine, versions = record["machine"], record["versions"]
    title = (
        f"fastopt {versions['fastopt']} against torch {versions['torch']}, "
        f"{machine['cpu']}, {versions['isa']}, {machine['threads']} threads"
    )
    notes = ["ratio: peer's time over fastopt's, median and quartiles of the rounds' own ratios"]
    if record["settings"]["quick"]:
        notes.append("quick run: only the results are checked, the times mean nothing")
    if (machine["load_before"] or 0) > BUSY:
        notes.append(f"the machine was busy before: load {machine['load_before']:.1f}")
    shown = Table(title=title, caption="\n".join(notes), caption_justify="left", box=box.SIMPLE)
    for name, justify in COLUMNS:
        shown.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in record["rows"]:
        shown.add_row(*_cells(row))
    return shown


class Display:
    """The growing table over a progress bar; without a terminal, a line per row, then the table."""

    def __init__(self, record: Record, total: int) -> None:
        self._record = record
        console = Console()
        self._console = console if console.is_terminal else Console(width=PLAIN_WIDTH)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )
        self._task = self._progress.add_task("", total=total)
        # Drawn between rows only: a redraw inside a timed step would be part of its time.
        self._live = Live(console=self._console, auto_refresh=False)

    def _draw(self, *below: Progress) -> None:
        self._live.update(Group(table(self._record), *below), refresh=True)

    def open(self) -> None:
        """Begin drawing."""
        if self._console.is_terminal:
            self._live.start()

    def start(self, name: str) -> None:
        """Say which row is running."""
        self._progress.update(self._task, description=name)
        if self._console.is_terminal:
            self._draw(self._progress)

    def done(self) -> None:
        """The running row's record is in."""
        self._progress.advance(self._task)
        if not self._console.is_terminal:
            row = self._record["rows"][-1]
            self._console.print(f"{row['id']}: {row['verdict']}", highlight=False)

    def close(self) -> None:
        """Leave the table alone on the screen."""
        if self._console.is_terminal:
            self._draw()
            self._live.stop()
        else:
            self._console.print(table(self._record))


@contextmanager
def display(record: Record, total: int) -> Iterator[Display]:
    """A Display of `record` that is closed, with what there is, on every way out."""
    shown = Display(record, total)
    shown.open()
    try:
        yield shown
    finally:
        shown.close()
