"""What people give: queries with arithmetic, filters, files of captions."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from clipkit.errors import ClipkitError
from clipkit.inputs import parse_query, parse_where, read_captions


@pytest.mark.parametrize(
    ("text", "plus", "minus"),
    [
        ("a red bird", ["a red bird"], []),
        ('"a red bird"', ["a red bird"], []),
        ("photo.JPG", [Path("photo.JPG")], []),
        ('"a beach" + photo.jpg - "people"', ["a beach", Path("photo.jpg")], ["people"]),
        ('photo.jpg - "people" - "a dog"', [Path("photo.jpg")], ["people", "a dog"]),
        ("a.png + b/c.webp", [Path("a.png"), Path("b/c.webp")], []),
        ("rock - paper - scissors", ["rock - paper - scissors"], []),
        ("1 + 1", ["1 + 1"], []),
        ('a sign that says "no entry" - in red', ['a sign that says "no entry" - in red'], []),
        ("black-and-white photo", ["black-and-white photo"], []),
    ],
)
def test_queries(text: str, plus: list[str | Path], minus: list[str | Path]) -> None:
    assert parse_query(text) == (plus, minus)


def test_where() -> None:
    assert parse_where(["label=bird", "path=*/a=b/*"]) == {"label": "bird", "path": "*/a=b/*"}
    with pytest.raises(ClipkitError, match="--where bird: expected NAME=PATTERN"):
        parse_where(["bird"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "\ufeffa cat\n\n  two   dogs \n", ["a cat", "two dogs"]),
        ("a.txt", "a cat, asleep\n", ["a cat, asleep"]),
        ("a.csv", 'file,Caption\nx.png,"a cat, asleep"\ny.png,a dog\nshort\n', ["a cat, asleep", "a dog"]),
        ("a.CSV", "a cat\n\na dog\n", ["a cat", "a dog"]),
        ("a.tsv", "x\ttext\n1\ta cat\n", ["a cat"]),
    ],
)
def test_captions_of_a_file(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_captions(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"x,y\n1,2\n", "no column called caption"),
        ("a.csv", b"x,caption\n1,\n", "no line with text"),
        ("a.txt", b"\xff\xfe\x00a", "not UTF-8"),
        ("a.txt", b"", "no line with text"),
    ],
)
def test_files_without_captions(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ClipkitError, match=rf"{name}: {message}"):
        read_captions(tmp_path / name)


def test_a_table_that_csv_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption\n"' + "x" * 2000)
    limit = csv.field_size_limit(1000)  # of the whole process: others raise it
    try:
        with pytest.raises(ClipkitError, match=r"a\.csv: no table"):
            read_captions(tmp_path / "a.csv")
    finally:
        csv.field_size_limit(limit)
