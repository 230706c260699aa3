"""Pictures and report of a real quick run: every row is there, nothing comes from outside."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text

from benchmarks import plots, record, report
from benchmarks.record import Record

KINDS = ("cpu", "tail", "peers", "curves", "train", "quality", "micro", "profile")


@pytest.fixture(scope="module")
def records(quick_benchmarks: tuple[Path, str]) -> dict[str, Record]:
    """Of each kind one record; the first rows of the cpu table with each verdict."""
    found = {kind: record.load(quick_benchmarks[0] / f"{kind}.json") for kind in KINDS}
    ok, short, wrong = found["cpu"]["rows"][:3]
    ok |= {"verdict": "ok", "goal": 1e-9, "missed": []}
    short |= {"verdict": "short", "goal": 1e9, "missed": ["ratio"]}
    wrong |= {"verdict": "wrong", "wrong": ["fastopt"]}
    del wrong["samples"]["fastopt"]
    return found


def _texts(found: Record, name: str) -> list[str]:
    return [text.get_text() for text in plots.figures(found)[name].findobj(Text)]


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
            assert "QUICK RUN" in source


def test_a_record_of_nothing_has_no_picture(records: dict[str, Record]) -> None:
    for found in records.values():
        assert plots.figures(found | {"rows": []}) == {}


class Page(HTMLParser):
    """What a browser would find: tables as text, what is bold, addresses, open tags."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.lines: list[list[str]] = []
        self.bold: list[str] = []
        self.style = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        given = dict(attrs)
        self.addresses += [given[k] or "" for k in ("src", "href", "srcset", "data") if k in given]
        if tag == "tr":
            self.lines.append([])
        if tag in ("td", "th"):
            self.lines[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            self.style += data
        if "strong" in self.open:
            self.bold.append(data)
        if "td" in self.open or "th" in self.open:
            self.lines[-1][-1] += data


@pytest.fixture(scope="module")
def page(records: dict[str, Record], tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(_page(list(records.values()), tmp_path_factory.mktemp("report")))


def _page(records: list[Record], folder: Path) -> str:
    made = []
    for found in records:
        paths = [folder / f"{found['kind']}-{name}.png" for name in plots.figures(found)]
        for path, figure in zip(paths, plots.figures(found).values(), strict=True):
            figure.savefig(path)
        made.append((found, paths))
    return report.page(made)


@pytest.mark.parametrize("kind", report.COMPARED)
def test_machines_side_by_side(kind: str, quick_benchmarks: tuple[Path, str]) -> None:
    """A column a machine, a line a row, whoever it is compared with; nothing of one machine."""
    ours = record.load(quick_benchmarks[0] / f"{kind}.json")
    assert report.side_by_side([ours]) == ""
    forced = [{**row, "isa": "avx2"} for row in ours["rows"][1:]]
    other = {**ours, "rows": forced, "settings": {**ours["settings"], "isa": ["avx2"]}}
    text = report.side_by_side([ours, other])
    head, _, *lines = [line for line in text.splitlines() if line.startswith("|")]
    assert record.device(ours) in head
    assert "forced avx2 on" in head
    assert len(lines) == len(ours["rows"])
    assert "avx2" not in "".join(lines)
    assert [line.count(" [") for line in lines[:3]] == [1, 2, 2]


def test_the_report_loads_nothing_from_elsewhere(page: Page) -> None:
    assert page.open == []  # every tag is closed
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert "url(" not in page.style
    assert "@import" not in page.style
    assert all(address.startswith("data:image/png;base64,") for address in page.addresses)


def test_the_report_has_every_picture(page: Page, records: dict[str, Record]) -> None:
    count = sum(len(plots.figures(found)) for found in records.values())
    assert page.tags.count("img") == len(page.addresses) == count


def test_the_report_has_every_row(page: Page, records: dict[str, Record]) -> None:
    def has(*cells: str) -> bool:
        return any(all(cell in line for cell in cells) for line in page.lines)

    for kind in ("cpu", "tail"):
        for row in records[kind]["rows"]:
            assert has(row["work"], f"{row['algorithm']}, {row['dtype']}"), row["id"]
    for row in records["curves"]["rows"]:
        assert has(row["sweep"], f"{row['x']:,}")
    for row in records["train"]["rows"]:
        optimizer = ", ".join(row["id"].split("/")[1:])  # and the bits of its states
        assert has(optimizer, f"{row['loss_gaps']['fastopt']:.1e}")
    for row in records["quality"]["rows"]:
        for form in row.get("losses", [f"{row.get('bits')}-bit states"]):
            assert any(line[1] == form for line in page.lines if len(line) > 1)
    for row in records["micro"]["rows"]:
        assert has(row["id"])
        assert all(has(who) for who in row["samples"])
    for row in records["peers"]["rows"]:
        assert all(has(who) for who in row["samples"].keys() - {"floor"})
    assert has("part", *(row["id"] for row in records["profile"]["rows"]))
    assert "wrong" in page.bold


def test_names_from_a_record_cannot_become_markup(
    records: dict[str, Record], tmp_path: Path
) -> None:
    hostile = json.loads(json.dumps(records["profile"]).replace("mlp/Adam", "<script>x</script>"))
    page = Page(_page([hostile], tmp_path))
    assert "script" not in page.tags
    assert any("<script>x</script>" in line for line in page.lines)
