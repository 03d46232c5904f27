"""What people give: queries with arithmetic, filters, files of captions."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import tyro

from clipkit.errors import ClipkitError
from clipkit.inputs import (
    check_output,
    lines_or_values,
    parse_flags,
    parse_query,
    parse_where,
    picture_paths,
    read_captions,
    read_lines,
    write_output,
)


@dataclass
class Flags:
    """Flags of a command."""

    where: tyro.conf.Positional[str]
    data: str = ""


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (["~/a", "--data=~/b c"], ("HOME/a", "HOME/b c")),
        (["~a", "--data", "x=~/b"], ("~a", "x=~/b")),
        (["a/~/b", "--data", "~/b"], ("a/~/b", "HOME/b")),
    ],
)
def test_home_folder(given: list[str], want: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """bash leaves the ~ of --data=~/photos alone."""
    monkeypatch.setenv("HOME", "HOME")
    flags = parse_flags(Flags, given, "prog")
    assert (flags.where, flags.data) == want


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


def test_a_picture_whose_name_has_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my photo.jpg").touch()
    assert parse_query('"my photo.jpg" - "people"') == ([Path("my photo.jpg")], ["people"])
    assert parse_query('"my photo.jpg"') == ([Path("my photo.jpg")], [])
    assert parse_query('"no photo.jpg"') == (["no photo.jpg"], []), "a text that happens to end so"


def test_what_names_a_file_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ('my "best" photo.jpg', "IMG 1.HEIC", "a + b.png", "- x.jpg"):
        Path(name).touch()
        assert parse_query(name) == ([Path(name)], []), name
    Path("red").touch()
    assert parse_query("red") == (["red"], []), "a word"
    assert parse_query("no such.HEIC") == (["no such.HEIC"], [])
    assert parse_query("x" * 5000 + ".jp") == (["x" * 5000 + ".jp"], []), "no name of a file"


def test_labels_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("a bird\na dog\n")
    assert lines_or_values((str(tmp_path / "labels.txt"),), "--labels") == ["a bird", "a dog"]
    assert lines_or_values(("cat/dog",), "--labels") == ["cat/dog"]
    with pytest.raises(ClipkitError, match=r"--labels label\.txt: no such file"):
        lines_or_values(("label.txt",), "--labels")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('- "people"', "expected words"),
        ('"a" - ""', "expected words"),
        ('"a" + ', "expected words"),
        ('""', "expected words"),
        ("https://example.com/a.jpg", "addresses are not fetched"),
        ('"a" + https://example.com/a.jpg', "addresses are not fetched"),
    ],
)
def test_queries_that_say_nothing_clear(text: str, words: str) -> None:
    with pytest.raises(ClipkitError, match=words):
        parse_query(text)


def test_pictures_of_a_folder_are_files(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")  # to open it would wait for ever
    assert picture_paths([str(tmp_path)]) == [tmp_path / "a.jpg"]


def test_outputs(tmp_path: Path) -> None:
    for bad, words in (
        (str(tmp_path), "a folder"),
        (str(tmp_path / "new") + "/", "a folder"),
        ("", "an empty name"),
        (str(tmp_path / "no" / "a"), "does not exist"),
    ):
        with pytest.raises(ClipkitError, match=words):
            check_output(bad)
    check_output(None)
    write_output(str(tmp_path / "a.csv"), "one\r\ntwo\r\n")
    assert (tmp_path / "a.csv").read_bytes() == b"one\r\ntwo\r\n"
    with pytest.raises(ClipkitError, match="cannot be written"):
        write_output("/proc/nothing", "x")


def test_where() -> None:
    assert parse_where(["label=bird", "path=*/a=b/*"]) == {"label": "bird", "path": "*/a=b/*"}
    with pytest.raises(ClipkitError, match="--where bird: expected NAME=PATTERN"):
        parse_where(["bird"])
    with pytest.raises(ClipkitError, match=r"--where path=b: path has a pattern already, a"):
        parse_where(["path=a", "path=b"])


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "\ufeffa cat\n\n  two   dogs \n", ["a cat", "two dogs"]),
        ("a.txt", "a cat, asleep\n", ["a cat, asleep"]),
        ("a.txt", "a\u2028cat\ra\x85dog\r\na\u2029fox", ["a cat", "a dog", "a fox"]),
        ("a.csv", 'file,Caption\nx.png,"a cat, asleep"\ny.png,a dog\nshort\n', ["a cat, asleep", "a dog"]),
        ("a.CSV", "a cat\n\na dog\n", ["a cat", "a dog"]),
        ("a.tsv", "x\ttext\n1\ta cat\n", ["a cat"]),
    ],
)
def test_captions_of_a_file(tmp_path: Path, name: str, text: str, expected: list[str]) -> None:
    (tmp_path / name).write_bytes(text.encode())
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


def test_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a\u2028cat\ra\x85dog\r\n\n".encode())
    assert read_lines(tmp_path / "a.txt") == ["a\u2028cat", "a\x85dog"]


def test_a_table_that_csv_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('caption\n"' + "x" * 2000)
    limit = csv.field_size_limit(1000)  # of the whole process: others raise it
    try:
        with pytest.raises(ClipkitError, match=r"a\.csv: no table"):
            read_captions(tmp_path / "a.csv")
    finally:
        csv.field_size_limit(limit)
