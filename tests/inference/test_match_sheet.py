"""The sheet of a match: every number is there, what is marked is what was found, and nothing is loaded or executed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html.parser import HTMLParser

import numpy as np
from PIL import Image

from clipkit.inference import Match
from clipkit.inference.match_sheet import MAX_CELLS, match_document, match_rows, match_tables

CAPTIONS = ["a red wall", "<script>alert(1)</script>", "a blue wall"]


@dataclass(frozen=True)
class Shown:
    name: str
    preview: Image.Image


def pictures(count: int) -> list[Shown]:
    return [Shown(f'{n} & "{n}".png', Image.new("RGB", (64, 32), (n % 256, 0, 0))) for n in range(count)]


def example() -> Match:
    matrix = np.array([[0.5, 0.1, 0.4], [0.45, -0.2, 0.0]], dtype=np.float32)
    return Match(matrix, matrix.argmax(1), matrix.argmax(0), [(0, 2), (1, 0)])


class Cells(HTMLParser):
    """Text and classes of the matrix's cells."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[tuple[str, str]] = []
        self.tags: set[str] = set()
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "td":
            self.inside = True
            self.cells.append(("", dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "td"

    def handle_data(self, data: str) -> None:
        if self.inside:
            text, kind = self.cells[-1]
            self.cells[-1] = (text + data, kind)


def test_the_matrix_holds_the_numbers_and_the_marks() -> None:
    parser = Cells()
    parser.feed(match_tables(example(), pictures(2), CAPTIONS))
    cells = parser.cells[:6]
    assert [float(text[:6].rstrip(" ▸▴b")) for text, _ in cells] == [0.5, 0.1, 0.4, 0.45, -0.2, 0.0]
    assert [kind for _, kind in cells] == ["", "", "ck-pair", "ck-pair", "", ""]
    assert ["best caption of this picture" in text for text, _ in cells] == [True, False, False, True, False, False]
    assert ["best picture of this caption" in text for text, _ in cells] == [True, True, True, False, False, False]


def test_the_document_loads_and_executes_nothing() -> None:
    html = match_document(example(), pictures(2), CAPTIONS, "<model>")
    parser = Cells()
    parser.feed(html)
    assert "script" not in parser.tags and "&lt;script&gt;" in html and "&lt;model&gt;" in html
    assert all(source.startswith("data:") for source in re.findall(r"""(?:src|href)=["']([^"']*)""", html))
    assert "//" not in re.sub(r'src="data:[^"]*"', "", html)
    assert "0 &amp; &quot;0&quot;.png" in html
    assert re.findall(r'<img [^>]*alt="([^"]*)"', html) == ["best caption: a red wall"] * 2


def test_many_cells_are_no_heatmap_but_the_matches_are_all_there() -> None:
    count = MAX_CELLS // 3 + 1
    matrix = np.linspace(-0.5, 0.5, 3 * count, dtype=np.float32).reshape(count, 3)
    found = Match(matrix, matrix.argmax(1), matrix.argmax(0), [(count - 1, 2)])
    html = match_tables(found, pictures(count), CAPTIONS)
    assert "ck-matrix" not in html and "more than a table can show" in html
    assert html.count("<img ") == count


def test_rows_leave_empty_what_is_not_assigned() -> None:
    matrix = np.array([[0.5], [0.25]], dtype=np.float32)
    found = Match(matrix, matrix.argmax(1), matrix.argmax(0), [(0, 0)])
    assert match_rows(found, ["x", "y"], ["c"]) == [["x", "c", "0.5000", "c", "0.5000"], ["y", "c", "0.2500", "", ""]]
