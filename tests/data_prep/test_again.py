"""Shards of other tools as a source, hostile ones too."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from data_prep_helpers import captions, picture, samples

from clipkit.errors import ClipkitError
from data_prep import prepare
from data_prep.again import read_shards


def tar(path: Path, members: list[tuple[str, bytes]], links: list[tuple[str, str]] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, target in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            file.addfile(info)
    return path


def test_samples_are_kept_with_all_that_is_known(tmp_path: Path) -> None:
    for n in range(2):  # the same keys in every shard, as many tools write them
        members = []
        for i in range(3):
            seed = 3 * n + i
            said = json.dumps({"captions": [f"c{seed}", "both"], "label": "x", "group": seed % 2}).encode()
            members += [(f"{i:04d}.jpg", picture(seed, (80, 60))), (f"{i:04d}.json", said)]
        tar(tmp_path / "in" / f"{n}.tar", members)
    prepare(tmp_path / "in", tmp_path / "out", processes=1)
    stored = samples(tmp_path / "out")
    assert list(stored) == ["0000", "0001", "0002", "0000-2", "0001-2", "0002-2"]
    assert stored["0001-2"]["image"] == picture(4, (80, 60))
    assert stored["0001-2"]["json"]["captions"] == ["c4", "both"] and stored["0001-2"]["json"]["label"] == "x"


def test_splits_of_prepared_shards_stay(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("test", 1)):
        tar(tmp_path / "in" / split / "0.tar", [("a.png", picture(seed, format="PNG")), ("a.txt", split.encode())])
    prepare(tmp_path / "in", tmp_path / "out", processes=1)
    assert captions(tmp_path / "out") == [["train"]] and captions(tmp_path / "out", "test") == [["test"]]


def test_splits_may_have_their_longer_names(tmp_path: Path) -> None:
    for seed, split in enumerate(("test", "Validation", "training", "valid")):
        tar(tmp_path / split / "0.tar", [("a.jpg", picture(seed)), ("a.txt", split.encode())])
    assert [(r.split, r.captions) for r in read_shards(tmp_path).records] == [
        ("train", ("training",)),
        ("val", ("Validation",)),
        ("val", ("valid",)),
        ("test", ("test",)),
    ]


def test_shards_beside_those_that_are_read_are_listed(tmp_path: Path) -> None:
    for seed, name in enumerate(("loose.tar", "more/0.tar", "train/0.tar", ".hidden/0.tar")):
        tar(tmp_path / name, [("a.jpg", picture(seed)), ("a.txt", name.encode())])
    source = read_shards(tmp_path)
    assert [r.captions for r in source.records] == [("train/0.tar",)]
    assert [s.file for s in source.skipped] == [str(tmp_path / "loose.tar"), str(tmp_path / "more" / "0.tar")]
    assert "train, val or test" in source.skipped[0].reason
    (tmp_path / "train" / "0.tar").rename(tmp_path / "0.tar")
    source = read_shards(tmp_path)
    assert [r.captions for r in source.records] == [("train/0.tar",), ("loose.tar",)]
    assert [s.file for s in source.skipped] == [str(tmp_path / "more" / "0.tar")]


def test_hostile_names_lead_nowhere(tmp_path: Path) -> None:
    evil = ["../../evil", "/etc/evil", 'q"uo\nte', "größe 猫", "C:\\evil"]
    members = [m for i, name in enumerate(evil) for m in ((f"{name}.jpg", picture(i)), (f"{name}.txt", b"c"))]
    links = [("link.jpg", "/etc/passwd"), ("link.txt", "/etc/passwd")]
    path = tar(
        tmp_path / "in" / "0.tar", [*members, ("no picture.txt", b"c"), ("bad.jpg", b"x"), ("bad.txt", b"c")], links
    )
    before = sorted(p for p in tmp_path.rglob("*") if "out" not in p.parts)
    summary = prepare(path, tmp_path / "out", processes=1)
    stored = samples(tmp_path / "out")
    assert len(stored) == 5 and all(key.replace("_", "").replace("-", "").isalnum() for key in stored)
    assert summary.skipped == 2  # a sample without picture, and one whose picture is none
    after = sorted(p for p in tmp_path.rglob("*") if "out" not in p.parts and not p.name.endswith(".index.npz"))
    assert before == after


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tar(tmp_path / "0.tar", [("a.jpg", picture(0)), ("a.json", b"{"), ("b.jpg", picture(1)), ("b.txt", b"fine")])
    summary = prepare(path, tmp_path / "out", processes=1)
    assert summary.samples == 1 and "not valid JSON" in summary.first_skipped[0].reason
    (tmp_path / "junk.tar").write_bytes(b"junk" * 500)
    with pytest.raises(ClipkitError, match=r"junk\.tar: not a tar file"):
        prepare(tmp_path / "junk.tar", tmp_path / "other")


def test_labels_without_captions_are_made_captions(tmp_path: Path) -> None:
    members = [(f"{n}.{ext}", data) for n in range(2) for ext, data in (("jpg", picture(n)), ("cls", str(n).encode()))]
    tar(tmp_path / "in" / "test" / "0.tar", members)
    (tmp_path / "in" / "classnames.txt").write_text("tit\nowl\n")
    source = read_shards(tmp_path / "in", template="an image of a {}")
    assert [(r.captions, r.meta["label"], r.split) for r in source.records] == [
        (("an image of a tit",), "tit", "test"),
        (("an image of a owl",), "owl", "test"),
    ]
    assert not source.skipped
    with pytest.raises(ClipkitError, match=r"no caption.*KEY.jpg beside KEY.txt, KEY.json or KEY.cls"):
        read_shards(tar(tmp_path / "bare.tar", [("0.jpg", picture(0))]))
