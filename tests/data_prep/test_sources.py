"""What a path is, and what is said of one that is no source."""

from __future__ import annotations

import errno
import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from data_prep_helpers import picture

from clipkit.errors import ClipkitError
from clipkit.pairs.index import load_index
from clipkit.pairs.remote import UnreachableError
from data_prep.sources import SourceOptions, read_source


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "A.TAR.ZST", "folder"])
def test_compressed_tars_are_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "folder":
        path.mkdir()
    (path / "b.tar.xz" if name == "folder" else path).write_bytes(b"\x1f\x8b")
    named = re.escape(str(path / "b.tar.xz" if name == "folder" else path))
    with pytest.raises(ClipkitError, match=rf"^{named}: a compressed tar.* unpack it \(gunzip"):
        read_source(path)


def test_metadata_in_the_folders_of_splits(tmp_path: Path) -> None:
    """As Hugging Face lays out folders of pictures: the table of each split beside them, or above them."""
    for n, split in enumerate(("train", "validation")):
        folder = tmp_path / split / "images"
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(picture(n))
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\nimages/0.png,picture {n}\n")
    found = read_source(tmp_path).records
    assert [(r.split, r.captions) for r in found] == [("train", ("picture 0",)), ("val", ("picture 1",))]


@pytest.mark.parametrize("table", ["captions.txt", "train.csv", "Images/captions.jsonl"])
def test_one_folder_of_pictures_beside_a_table_is_no_class(table: str, tmp_path: Path) -> None:
    (tmp_path / "Images").mkdir()
    for n in range(2):
        (tmp_path / "Images" / f"{n}.png").write_bytes(picture(n))
    (tmp_path / table).write_text("image,caption\n0.png,a dog\n1.png,a cat\n")
    with pytest.raises(ClipkitError, match=rf"captions, give {re.escape(str(tmp_path / table))}$"):
        read_source(tmp_path)
    (tmp_path / table).write_text("Pictures of the institute, free for all.")
    assert [r.meta["label"] for r in read_source(tmp_path).records] == ["Images", "Images"]


def test_folders_of_splits_beside_a_table_are_no_class(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "val")):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "images" / f"{n}.png").write_bytes(picture(n))
    (tmp_path / "captions.csv").write_text("image,caption\ntrain/images/0.png,a dog\nval/images/1.png,a cat\n")
    with pytest.raises(ClipkitError, match=r"in one folder, images, .* give .*captions\.csv$"):
        read_source(tmp_path)


def test_shards_that_this_process_cannot_open_are_no_bad_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("0.png", picture(0)), ("0.txt", b"a dog")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    load_index(tmp_path / "0.tar")
    monkeypatch.setattr("os.pread", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOMEM, "Cannot allocate memory")))
    with pytest.raises(UnreachableError, match=r"0\.png: cannot be read \(Cannot allocate memory\); free some memory"):
        read_source(tmp_path)


def test_captions_of_shards_under_another_name(tmp_path: Path) -> None:
    said = json.dumps({"TEXT": "a dog", "url": "x"}).encode()
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, data in (("0.png", picture(0)), ("0.json", said)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (record,) = read_source(tmp_path, SourceOptions(caption_column="TEXT")).records
    assert record.captions == ("a dog",) and "TEXT" not in record.meta and record.meta["url"] == "x"
    with pytest.raises(ClipkitError, match=r"no caption, or .* \(its json has TEXT, url; captions is what"):
        read_source(tmp_path)
