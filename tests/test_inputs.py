"""What people type: queries with arithmetic, filters."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipkit.errors import ClipkitError
from clipkit.inputs import parse_query, parse_where


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
