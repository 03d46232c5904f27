"""Shards with labels, and of pictures alone, as other tools write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs import join_shards, open_shards
from clipkit.pairs.classes import label_of

Write = Callable[..., Path]
Picture = Callable[..., bytes]


def members(picture: Picture, *labels: object, ext: str = "cls") -> list[tuple[str, bytes]]:
    found = []
    for n, label in enumerate(labels):
        found.append((f"{n:04d}.JPG", picture(n)))
        if label is not None:
            found.append((f"{n:04d}.{ext}", str(label).encode()))
    return found


def labels(path: Path) -> list[object]:
    found = open_shards(path)
    return [found.read_record(i)[0].get("label") for i in range(len(found))]


def test_a_cls_is_a_label(tmp_path: Path, write_tar: Write, picture: Picture) -> None:
    path = write_tar(tmp_path / "a" / "0.tar", members(picture, 1, "0\n", "red bird", 7))
    assert labels(path) == ["1", "0", "red bird", "7"]
    found = open_shards(path)
    assert found.read(2).captions == () and found.read(2).meta == {"label": "red bird"}
    assert found.read(2).image == picture(2)


@pytest.mark.parametrize("where", ["a", "."])
def test_numbers_have_the_names_of_their_classes(
    where: str, tmp_path: Path, write_tar: Write, picture: Picture
) -> None:
    """Beside the shards or above their folder, as CLIP_benchmark has it; a text stays what it is."""
    path = write_tar(tmp_path / "a" / "0.tar", members(picture, 1, 0, "red bird"))
    (tmp_path / where / "classnames.txt").write_text("\ufeffgreat tit\r\nowl\r\n", encoding="utf-8")
    assert labels(path.parent) == ["owl", "great tit", "red bird"]
    other = write_tar(tmp_path / "elsewhere" / "b" / "0.tar", members(picture, 1))
    both = join_shards([open_shards(path), open_shards(other)])
    assert [both.read_record(i)[0]["label"] for i in (0, 3)] == ["owl", "1"]


@pytest.mark.parametrize("number", ["2", "3", "99"])
def test_a_number_without_a_name_is_told(number: str, tmp_path: Path, write_tar: Write, picture: Picture) -> None:
    path = write_tar(tmp_path / "0.tar", members(picture, 1, number))
    (tmp_path / "classnames.txt").write_text("tit\nowl\n\n")
    with pytest.raises(ClipkitError, match=rf"0.tar/0001.jpg: its .cls says class {number}, which classnames.txt has"):
        labels(path)


def test_a_json_says_more_than_a_cls(tmp_path: Path, write_tar: Write, picture: Picture) -> None:
    path = write_tar(tmp_path / "0.tar", [("0.jpg", picture(0)), ("0.cls", b"5"), ("0.json", b'{"label": "owl"}')])
    assert labels(path) == ["owl"]
    assert label_of(b" \n", ("owl",)) is None and label_of("٣".encode(), ("owl",)) == "٣"


def test_pictures_alone(tmp_path: Path, write_tar: Write, picture: Picture) -> None:
    path = write_tar(tmp_path / "0.tar", members(picture, None, None, None))
    found = open_shards(path)
    assert found.problems == [] and [s.image for s in found] == [picture(n) for n in range(3)]
    assert found.read(1).captions == () and found.read(1).meta == {}


def test_one_without_a_text_among_others_is_a_problem(tmp_path: Path, write_tar: Write, picture: Picture) -> None:
    path = write_tar(tmp_path / "0.tar", members(picture, "one", None, "three", ext="txt"))
    with pytest.warns(UserWarning, match="'0001' has neither .json nor .txt nor .cls"):
        assert [s.captions for s in open_shards(path)] == [("one",), ("three",)]


def test_a_folder_is_asked_for_its_names_once(tmp_path: Path, write_tar: Write, picture: Picture) -> None:
    """Behind a URL each question is a request; above a host nothing is asked."""
    from shard_server import serve

    for n in range(3):
        write_tar(tmp_path / f"{n}.tar", members(picture, n, 0))
    with serve(tmp_path) as server:
        found = open_shards(f"{server.url}/{{0..2}}.tar")
        assert [found.read_record(i)[0]["label"] for i in range(0, 6, 2)] == ["0", "1", "2"]
        asked = [path for path in map(str, server.asked) if "classnames" in path]
        assert len(asked) == 1, asked
    (tmp_path / "classnames.txt").write_text("tit\nowl\nwren\n")
    with serve(tmp_path) as server:
        found = open_shards(f"{server.url}/{{0..2}}.tar")
        assert [found.read_record(i)[0]["label"] for i in range(0, 6, 2)] == ["tit", "owl", "wren"]
