"""Tables on the terminal, from records alone: title and notes, the cpu table, the live display."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


def microseconds(seconds: float) -> str:
    """A time for a table."""
    return f"{seconds * 1e6:,.1f}" if seconds < 1e-3 else f"{seconds * 1e6:,.0f}"


def ratio(spread: Record) -> str:
    """A median with its quartiles for a table."""
    return f"{spread['median']:.2f}x [{spread['q1']:.2f}, {spread['q3']:.2f}]"


def _short(contestant: str) -> str:
    return contestant.removeprefix("torch.")


def _cells(row: Record) -> list[str | Text]:
    verdict = Text(row["verdict"], STYLES[row["verdict"]])
    goal = f"{row['goal']:g}x"
    about = [row["work"], row["algorithm"], row["dtype"], str(row["bytes_per_param"])]
    if row["verdict"] == "wrong":
        return [*about, "", ", ".join(row["wrong"]), "", "", goal, verdict, "", ""]
    floor, times = row["floor_ratio"], row["times"]
    fast = times["fastopt"]["median"]
    above = f"{floor['median']:.2f}"
    if row["floor_goal"]:
        above += f" (<= {row['floor_goal']:.2f})"
    return [
        *about,
        microseconds(fast),
        ", ".join(
            [_short(row["peer"]), *(f"{_short(name)} wrong" for name in row.get("wrong", ()))]
        ),
        microseconds(times[row["peer"]]["median"]),
        Text(ratio(row["ratio"]), STYLES["short"] if "ratio" in row["missed"] else ""),
        goal,
        verdict,
        Text(above, STYLES["short"] if "floor" in row["missed"] else ""),
        f"{row['bytes_per_param'] * row['elements'] / fast * 1e-9:.1f}",
    ]


def title(record: Record) -> str:
    """Who was measured on what, in one line."""
    machine, versions = record["machine"], record["versions"]
    return (
        f"fastopt {versions['fastopt']} against torch {versions['torch']}, "
        f"{machine['cpu']}, {versions['isa']}, {machine['threads']} threads"
    )


def notes(record: Record) -> list[str]:
    """What must be known before a time of `record` is believed."""
    found = []
    if record["settings"]["quick"]:
        found.append("quick run: only the results are checked, the times mean nothing")
    load = record["machine"]["load_before"] or 0
    if load > BUSY:
        found.append(f"the machine was busy before: load {load:.1f}")
    return found


def new_table(record: Record, columns: Iterable[tuple[str, str]], *captions: str) -> Table:
    """An empty table with the record's title and notes."""
    shown = Table(
        title=title(record),
        caption="\n".join([*captions, *notes(record)]),
        caption_justify="left",
        box=box.SIMPLE,
    )
    for name, justify in columns:
        # Only remarks, which have no heading, may take several lines.
        shown.add_column(name, justify=justify, no_wrap=bool(name))  # type: ignore[arg-type]
    return shown


def table(record: Record) -> Table:
    """The table of a whole record with goals, finished or not."""
    shown = new_table(
        record,
        COLUMNS,
        "ratio: peer's time over fastopt's, median and quartiles of the rounds' own ratios",
    )
    for row in record["rows"]:
        shown.add_row(*_cells(row))
    return shown


Render = Callable[[Record], Table]


class Display:
    """The growing table over a progress bar; without a terminal, a line per row, then the table."""

    def __init__(self, record: Record, total: int, render: Render) -> None:
        self._record = record
        self._render = render
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
        self._live.update(Group(self._render(self._record), *below), refresh=True)

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
            self._console.print(self._render(self._record))


@contextmanager
def display(record: Record, total: int, render: Render = table) -> Iterator[Display]:
    """A Display of `record` that is closed, with what there is, on every way out."""
    shown = Display(record, total, render)
    shown.open()
    try:
        yield shown
    finally:
        shown.close()
