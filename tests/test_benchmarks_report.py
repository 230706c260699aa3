"""Pictures and report of real quick runs: every row is there, nothing comes from outside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from torch import Tensor

from benchmarks import (
    contestants,
    cpu,
    curves,
    method,
    micro,
    plots,
    profiling,
    record,
    report,
    train,
)
from benchmarks.record import Record

ROWS = [
    cpu.Row("mlp", "Adam", "fp32", "fused", goal=1e-9),
    cpu.Row("mlp", "SGD-plain", "fp32", "default", goal=1e9),
    cpu.Row("mlp", "RMSprop", "fp32", "best", goal=1.0),
]
VERDICTS = ["ok", "short", "wrong"]


def _wrong(cls: str, params: list[Tensor], options: Mapping[str, Any]) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = getattr(torch.optim, cls)(params, **{**options, "lr": 0.5})
    return made


def _cpu_row(row: cpu.Row, verdict: str) -> Record:
    """A real row; a quick run's verdict is replaced by the one to be shown."""
    if verdict == "wrong":
        makers = contestants.MAKERS | {"fastopt": _wrong}
        return cpu.run_row(row, method.QUICK, makers, quick=True)
    missed = ["ratio"] if verdict == "short" else []
    found = cpu.run_row(row, method.QUICK, quick=True)
    return found | {"verdict": verdict, "missed": missed}


def _curves() -> Record:
    points = [
        curves.measure(point, "Adam", "fp32", method.QUICK)
        for point in curves.sweeps(torch.get_num_threads(), quick=True)
    ]
    return record.header("curves", algorithm="Adam", dtype="fp32", quick=True) | {"points": points}


def _micro() -> Record:
    made = micro.rows(2, quick=True)
    rows = [micro.run_row(name, make, method.QUICK, True) for name, make in made.items()]
    rows.append(rows[0] | {"id": "bad", "verdict": "wrong", "wrong": ["avx2"], "samples": {}})
    for key in ("times", "of_base"):
        rows[-1].pop(key)
    return record.header("micro", quick=True) | {"rows": rows}


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    """Of each kind one record, as `load` reads it."""
    folder = tmp_path_factory.mktemp("records")
    rows = [_cpu_row(row, verdict) for row, verdict in zip(ROWS, VERDICTS, strict=True)]
    made = {
        "cpu": record.header("cpu", quick=False, **asdict(method.QUICK)) | {"rows": rows},
        "curves": _curves(),
        "train": record.header("train", quick=True)
        | {"rows": [train.run_row(train.Row("mlp", "adam"), quick=True)]},
        "micro": _micro(),
        "profile": record.header("profile", quick=True)
        | {"rows": [profiling.measure("mlp", "Adam", [(7,)] * 3, 0.0)]},
    }
    for kind, found in made.items():
        record.save(folder / f"{kind}.json", found)
    return {kind: record.load(folder / f"{kind}.json", kind) for kind in made}


def _texts(found: Record, name: str) -> list[str]:
    _, figure = plots.figures(found)[name]
    return [text.get_text() for text in figure.findobj(Text)]


def test_a_row_below_its_goal_is_drawn_as_plainly(records: dict[str, Record]) -> None:
    texts = _texts(records["cpu"], "speedup")
    for row in records["cpu"]["rows"]:
        assert row["id"].replace("/", "  ") in texts
    reached, below, wrong = (
        next(text for text in texts if pattern in text)
        for pattern in ("goal 1e-09x", "goal 1e+09x", "WRONG RESULT: fastopt")
    )
    assert "BELOW" in below
    assert "BELOW" not in reached
    assert "not timed" in wrong


def test_every_picture_names_machine_and_versions(records: dict[str, Record]) -> None:
    for found in records.values():
        drawn = plots.figures(found)
        assert drawn
        for name in drawn:
            (source,) = {text for text in _texts(found, name) if " | torch " in text}
            assert found["machine"]["cpu"] in source
            assert f"torch {torch.__version__}" in source
            assert ("QUICK RUN" in source) == found["settings"]["quick"]


def test_a_record_of_nothing_has_no_picture(records: dict[str, Record]) -> None:
    for kind, found in records.items():
        empty = found | {"points" if kind == "curves" else "rows": []}
        assert plots.figures(empty) == {}


def test_plots_are_written_beside_the_file(records: dict[str, Record], tmp_path: Path) -> None:
    out = tmp_path / "here.json"
    paths = plots.save(records["curves"], out)
    sweeps = dict.fromkeys(point["sweep"] for point in records["curves"]["points"])
    assert [path.name for path in paths] == [f"here-{sweep}.png" for sweep in sweeps]
    for path in paths:
        with Image.open(path) as image:
            assert image.size[0] > 1000


class Page(HTMLParser):
    """What a browser would find: tables as text, addresses, open tags, styles."""

    VOID = ("meta", "source", "img", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.lines: list[list[str]] = []
        self.marks: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.addresses += [given[k] or "" for k in ("src", "href", "srcset", "data") if k in given]
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")
            self.marks += (given.get("class") or "").split()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        if self.open and self.open[-1] in ("td", "th"):
            self.lines[-1][-1] += data


@pytest.fixture(scope="module")
def page(records: dict[str, Record]) -> Page:
    return Page(report.page(list(records.values())))


def test_the_report_loads_nothing_from_elsewhere(page: Page) -> None:
    assert page.open == []  # every tag is closed
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "url(" not in page.style
    assert "@import" not in page.style
    for address in page.addresses:
        assert address.startswith(("data:image/png;base64,", "#"))
        if address.startswith("#"):
            assert address[1:] in page.ids


def test_the_report_has_every_picture_for_light_and_dark(
    page: Page, records: dict[str, Record]
) -> None:
    count = sum(len(plots.figures(found)) for found in records.values())
    assert (page.tags.count("img"), page.tags.count("source")) == (count, count)
    dark = []
    for address in page.addresses:
        if address.startswith("data:"):
            data = io.BytesIO(base64.b64decode(address.partition(",")[2]))
            with Image.open(data) as image:
                dark.append(image.convert("L").getpixel((0, 0)) < 128)
    assert dark == [True, False] * count


def test_the_report_has_every_row(page: Page, records: dict[str, Record]) -> None:
    def has(*cells: str) -> bool:
        return any(all(cell in line for cell in cells) for line in page.lines)

    for row in records["cpu"]["rows"]:
        assert has(row["work"], row["algorithm"], row["dtype"], row["verdict"]), row["id"]
    for point in records["curves"]["points"]:
        assert has(point["sweep"], f"{point['x']:,}")
    for row in records["train"]["rows"]:
        for who in row["times"]:
            assert has(who, f"{row['loss_gaps'][who]:.1e}")
    for row in records["micro"]["rows"]:
        assert has(row["id"])
        for who in row.get("times", {}):
            assert has(who)
    for row in records["profile"]["rows"]:
        assert has("part", row["id"])
        for part in row["parts"]:
            assert any(line[0].strip() == part["name"] for line in page.lines if line)
    assert {"good", "short", "wrong"} <= set(page.marks)


def test_names_from_a_record_cannot_become_markup(records: dict[str, Record]) -> None:
    hostile = json.loads(json.dumps(records["profile"]).replace("mlp/Adam", "<script>x</script>"))
    assert "script" not in Page(report.page([hostile])).tags
