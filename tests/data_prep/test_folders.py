"""Folders with captions beside the pictures, and folders of classes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_prep_helpers import picture as picture_of
from data_prep_helpers import pictures

from clipkit.errors import ClipkitError
from clipkit.pairs import open_shards
from data_prep import SourceOptions, prepare, read_source
from data_prep.__main__ import main
from data_prep.folders import read_folder


def test_captions_beside_the_pictures(tmp_path: Path) -> None:
    first, second, third = pictures(tmp_path / "deep" / "er", 3)
    first.with_suffix(".txt").write_text("a dog\n\n a  second caption \n", encoding="utf-8-sig")
    second.with_suffix(".txt").write_text(" \n")
    source = read_folder(tmp_path)
    assert [r.captions for r in source.records] == [("a dog", "a second caption")]
    assert source.records[0].meta == {"file": "deep/er/0.jpg"}
    assert [s.file for s in source.skipped] == [str(second), str(third)]


def test_captions_end_where_lines_do(tmp_path: Path) -> None:
    (path,) = pictures(tmp_path, 1)
    path.with_suffix(".txt").write_bytes("one\u2028still one\r\ntwo\x85still two\rthree\u2029still three\n".encode())
    assert read_folder(tmp_path).records[0].captions == ("one still one", "two still two", "three still three")


def test_captions_in_other_encodings(tmp_path: Path) -> None:
    first, second, third = pictures(tmp_path, 3)
    first.with_suffix(".txt").write_bytes("café".encode("utf-16"))
    second.with_suffix(".txt").write_bytes("café".encode("latin-1"))
    third.with_suffix(".txt").write_text("café", encoding="utf-8")
    source = read_folder(tmp_path)
    assert [r.captions for r in source.records] == [("café",), ("café",)]
    assert [s.file for s in source.skipped] == [str(second)] and "--encoding latin-1" in source.skipped[0].reason
    first.with_suffix(".txt").unlink()
    source = read_source(tmp_path, SourceOptions(encoding="latin-1"))
    assert [r.captions for r in source.records] == [("café",), ("cafÃ©",)]
    with pytest.raises(ClipkitError, match="nonsense: no such text encoding"):
        read_folder(tmp_path, encoding="nonsense")


def test_pictures_with_rarer_endings_are_used_or_listed(tmp_path: Path) -> None:
    endings = ["jpe", "jfif", "avif", "heic", "HEIF", "tif"]
    for picture, ending in zip(pictures(tmp_path / "in", len(endings)), endings, strict=True):
        picture.rename(picture.with_suffix(f".{ending}"))
        picture.with_suffix(".txt").write_text(f"of {ending}")
    (tmp_path / "in" / "3.heic").write_bytes(b"\0\0\0\x18ftypheic")
    summary = prepare(tmp_path / "in", tmp_path / "out", processes=1)
    assert summary.samples == 5
    assert "3.heic" in summary.first_skipped[0].file and "not a picture" in summary.first_skipped[0].reason


@pytest.mark.skipif(sys.platform in ("darwin", "win32"), reason="the system has no other names than UTF-8")
def test_a_class_whose_name_is_no_utf8(tmp_path: Path) -> None:
    os.mkdir(os.fsencode(tmp_path) + b"/caf\xe9")
    (picture,) = pictures(tmp_path / "cat", 1)
    picture.rename(tmp_path / os.fsdecode(b"caf\xe9") / "1.jpg")
    pictures(tmp_path / "cat", 1)[0].write_bytes(picture_of(3))
    assert prepare(tmp_path, tmp_path / "out", processes=1).samples == 2
    assert pq.read_table(tmp_path / "out" / "train" / "000000.tar.scores.parquet")["label"].to_pylist() == [
        "caf\\udce9",
        "cat",
    ]


def test_class_folders_and_template(tmp_path: Path) -> None:
    pictures(tmp_path / "fire_truck", 2)
    pictures(tmp_path / "cat", 1)
    pictures(tmp_path / ".hidden", 1)
    (tmp_path / "0.jpg").write_bytes(b"loose")
    source = read_folder(tmp_path)
    assert [(r.captions, r.meta["label"]) for r in source.records] == [
        (("a photo of a cat.",), "cat"),
        (("a photo of a fire truck.",), "fire truck"),
        (("a photo of a fire truck.",), "fire truck"),
    ]
    assert [s.reason for s in source.skipped] == ["not in the folder of a class"]
    assert read_folder(tmp_path, template="{}, drawn").records[0].captions == ("cat, drawn",)


def test_folders_named_like_splits_are_the_splits(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        pictures(tmp_path / split / "cat", 1)
    assert {r.split: r.meta["label"] for r in read_folder(tmp_path).records} == {
        "train": "cat",
        "val": "cat",
        "test": "cat",
    }


@pytest.mark.parametrize("layout", ["flat", "one folder", "splits", "some captions"])
def test_pictures_without_captions(tmp_path: Path, layout: str) -> None:
    """A folder that holds nothing else is what SimCLR, MoCo and BYOL learn from."""
    places = {"one folder": [tmp_path / "images"], "splits": [tmp_path / "train", tmp_path / "val"]}
    paths = [path for place in places.get(layout, [tmp_path]) for path in pictures(place, 2)]
    if layout == "some captions":
        paths[0].with_suffix(".txt").write_text("a dog")
    source = read_folder(tmp_path, captions_optional=True)
    assert not source.skipped and [r.image for r in source.records] == paths
    assert [r.captions for r in source.records] == [("a dog",) if layout == "some captions" and not n else () for n in
                                                    range(len(paths))]  # fmt: skip
    assert all(list(r.meta) == ["file"] for r in source.records)
    assert [r.split for r in source.records] == {"splits": ["train", "train", "val", "val"]}.get(layout, [None, None])


def test_classes_are_classes_where_captions_are_optional(tmp_path: Path) -> None:
    pictures(tmp_path / "cat", 1)
    pictures(tmp_path / "dog", 1)
    assert [r.meta["label"] for r in read_folder(tmp_path, captions_optional=True).records] == ["cat", "dog"]


def test_shards_and_cards_of_pictures_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way by the command, with a filter of words, and once more from the shards."""
    pictures(tmp_path / "in", 6)
    assert main([str(tmp_path / "in"), str(tmp_path / "no")]) == 2
    assert "--captions-optional" in capsys.readouterr().err
    flags = ["--captions-optional", "--processes", "1", "--split-val", "0.3"]
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), *flags, "--max-words", "5"]) == 0
    assert main([str(tmp_path / "out"), str(tmp_path / "again"), *flags]) == 0
    for folder in ("out", "again"):
        shards = open_shards(f"{tmp_path / folder}/{{train,val}}/*.tar")
        assert len(shards) == 6 and not shards.problems
        assert {s.captions for s in shards} == {()} and not any("label" in s.meta for s in shards)
        stats = json.loads((tmp_path / folder / "stats.json").read_text())
        assert [split["captions"] for split in stats["splits"].values()] == [0, 0]
    with pytest.raises(ClipkitError, match="no sample in these shards"):
        prepare(tmp_path / "out", tmp_path / "third")


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match="no such folder"):
        read_folder(tmp_path / "x")
    with pytest.raises(ClipkitError, match="no pictures in this folder"):
        read_folder(tmp_path)
    pictures(tmp_path, 1)
    with pytest.raises(ClipkitError, match=r"no captions; put NAME.txt beside"):
        read_folder(tmp_path)
    (tmp_path / "0.txt").write_text("")
    with pytest.raises(ClipkitError, match="none of its 1 pictures has a caption"):
        read_folder(tmp_path)
    with pytest.raises(ClipkitError, match=r"has no \{\} where the label goes"):
        read_folder(tmp_path, template="a photo")


def test_shards_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "000.tar").write_bytes(b"")
    with pytest.raises(ClipkitError, match="shards already"):
        read_folder(tmp_path)


def test_a_link_back_up_does_not_go_round(tmp_path: Path) -> None:
    pictures(tmp_path / "cat", 2)
    (tmp_path / "cat" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert len(read_folder(tmp_path).records) == 2


def test_a_data_set_of_ours_inside_the_folder_is_not_read(tmp_path: Path) -> None:
    """A contact sheet is no picture of a class."""
    pictures(tmp_path / "cat", 2)
    prepare(tmp_path, tmp_path / "shards", processes=1)
    assert prepare(tmp_path, tmp_path / "shards", processes=1).reused
    (tmp_path / "half" / ".work").mkdir(parents=True)
    (tmp_path / "half" / "contact_sheet.jpg").write_bytes(picture_of(3))
    assert {record.meta["label"] for record in read_folder(tmp_path).records} == {"cat"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_strange_files_are_listed_and_strange_names_are_fine(tmp_path: Path) -> None:
    names = ["größe 猫", "quo\"te's", "new\nline", "a,b;c|d", "%s{}", "-rf"]
    for name, path in zip(names, pictures(tmp_path / "d", len(names)), strict=True):
        path.rename(path.with_name(f"{name}.jpg"))
    bad = ["text", "pipe", "dead", "link", "huge"]
    with (tmp_path / "d" / "huge.jpg").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "d" / "text.jpg").write_text("hello")
    os.mkfifo(tmp_path / "d" / "pipe.jpg")
    (tmp_path / "d" / "dead.jpg").symlink_to("/nowhere")
    (tmp_path / "d" / "link.jpg").symlink_to("/etc/hosts")
    for name in [*names, *bad]:
        (tmp_path / "d" / f"{name}.txt").write_text(f"of {name}")
    summary = prepare(tmp_path / "d", tmp_path / "out", processes=1)
    assert summary.samples == len(names) and summary.skipped == len(bad)
    assert {Path(s.file).stem: s.reason for s in summary.first_skipped} == {
        "text": "not a picture in a format that can be read",
        "pipe": "not a regular file",
        "dead": "cannot be read (No such file or directory)",
        "link": "not a picture in a format that can be read",
        "huge": "1,024.0 GiB; a picture file of more than 1 GiB is not read",
    }
