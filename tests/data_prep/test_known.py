"""The files that known data sets come in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_prep_helpers import pictures

from clipkit.errors import ClipkitError
from data_prep import SourceOptions, read_source


def test_coco(tmp_path: Path) -> None:
    pictures(tmp_path / "val2017", 3)
    (tmp_path / "annotations").mkdir()
    path = tmp_path / "annotations" / "captions_val2017.json"
    images = [{"id": 10 + i, "file_name": f"{i}.jpg"} for i in range(5)]
    notes = [{"id": n, "image_id": 10 + n % 4, "caption": f" note\n{n} "} for n in range(8) if n % 4 != 2]
    path.write_text(json.dumps({"info": {}, "images": images, "annotations": notes}))
    source = read_source(path)
    assert [r.captions for r in source.records] == [("note 0", "note 4"), ("note 1", "note 5")]
    assert source.records[0].meta == {"id": 10, "file": "0.jpg"}
    assert [s.reason for s in source.skipped] == ["no caption in the file of captions", "no such file", "no such file"]
    alone = read_source(path, SourceOptions(captions_optional=True))
    assert [len(r.captions) for r in alone.records] == [2, 2, 0] and len(alone.skipped) == 2
    as_text = [{**note, "image_id": str(note["image_id"])} for note in notes]
    path.write_text(json.dumps({"images": images, "annotations": as_text}))
    assert [r.captions for r in read_source(path).records] == [("note 0", "note 4"), ("note 1", "note 5")]


def test_coco_with_holes(tmp_path: Path) -> None:
    """Captions that are null, files without a name, annotations of no image: listed, and the rest is used."""
    pictures(tmp_path, 3)
    images = [{"id": n, "file_name": name} for n, name in enumerate(["0.jpg", "1.jpg", None, 7, "a\0b.jpg"])]
    notes = [{"image_id": n, "caption": said} for n, said in [(0, "a"), (0, None), (1, None), (2, "b"), (99, "c")]]
    (tmp_path / "coco.json").write_text(json.dumps({"images": images, "annotations": notes}))
    source = read_source(tmp_path / "coco.json")
    assert [r.captions for r in source.records] == [("a",)]
    assert [(Path(s.file).name, s.reason) for s in source.skipped] == [
        ("coco.json", "annotations of no image in the list: 1, the first of image_id 99"),
        ("coco.json image 3", "its file_name is None, not a name"),
        ("coco.json image 4", "its file_name is 7, not a name"),
        ("coco.json image 5", "its file_name is 'a\\x00b.jpg', not a name"),
        ("0.jpg", "a caption that is null, not a text"),
        ("1.jpg", "no caption in the file of captions"),
    ]


def test_karpathy(tmp_path: Path) -> None:
    pictures(tmp_path / "images", 3)
    images = [
        {"filename": f"{i}.jpg", "split": split, "sentences": [{"raw": f"a {i}"}, {"raw": f"b {i}"}]}
        for i, split in enumerate(("train", "restval", "test"))
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    records = read_source(tmp_path / "dataset.json").records
    assert [(r.split, r.captions) for r in records] == [
        ("train", ("a 0", "b 0")),
        ("train", ("a 1", "b 1")),
        ("test", ("a 2", "b 2")),
    ]


def test_coco_with_annotations_that_lack_something(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(2)]
    odd = [{"caption": "x"}, {"image_id": 1}, 7, {"image_id": [1], "caption": "x"}]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 0, "caption": "a"}, *odd]}))
    source = read_source(path)
    assert [r.captions for r in source.records] == [("a",)]
    assert [(Path(s.file).name, s.reason) for s in source.skipped] == [
        ("coco.json", "annotations without an image_id or a caption: 4, the first of them number 2"),
        ("1.jpg", "no caption in the file of captions"),
    ]
    path.write_text(json.dumps({"images": images, "annotations": odd}))
    with pytest.raises(ClipkitError, match=r"coco\.json: not a file of captions \(.*no annotation has"):
        read_source(path)


@pytest.mark.parametrize("text", ["", "[1]", '{"images": 3}', '{"images": [{"id": 1}], "annotations": []}', "{" * 5000])
def test_other_json_is_refused_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ClipkitError, match=r"x.json: not a file of captions") as raised:
        read_source(tmp_path / "x.json")
    assert "\n" not in str(raised.value)


def test_flickr_tokens_with_the_lists_of_splits(tmp_path: Path) -> None:
    pictures(tmp_path / "Flicker8k_Dataset", 4)
    path = tmp_path / "Flickr8k.token.txt"
    lines = [
        "0.jpg#0\tA child .",
        '0.jpg#1\tA, "girl"',
        "no tab",
        "1.jpg.1#0\tx",
        "2.jpg#0\ty",
        "3.jpg#0\tz",
        "9.jpg#0\tq",
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    (tmp_path / "Flickr_8k.trainImages.txt").write_text("0.jpg\n")
    (tmp_path / "Flickr_8k.devImages.txt").write_text("1.jpg\n")
    (tmp_path / "Flickr_8k.testImages.txt").write_text("2.jpg\n")
    source = read_source(path)
    assert [(r.captions, r.split) for r in source.records] == [
        (("A child .", 'A, "girl"'), "train"),
        (("x",), "val"),
        (("y",), "test"),
        (("z",), "train"),
    ]
    assert [s.reason for s in source.skipped] == ["not PICTURE#NUMBER<tab>CAPTION", "no such file"]


def test_tokens_in_other_encodings(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    path = tmp_path / "tokens.txt"
    path.write_bytes("0.jpg#0\tun café\r\n0.jpg#1\tun thé".encode("utf-16"))
    assert read_source(path).records[0].captions == ("un café", "un thé")
    path.write_bytes("0.jpg#0\tun café\n".encode("latin-1"))
    assert read_source(path, SourceOptions(encoding="latin-1")).records[0].captions == ("un café",)
    with pytest.raises(ClipkitError, match=r"tokens\.txt: line 1 is not utf-8; .* --encoding latin-1"):
        read_source(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("captions.txt", "image,caption\n0.jpg,A girl , in a dress .\n0.jpg,second\n1.jpg,other\n"),
        (
            "results.csv",
            "image_name| comment_number| comment\n0.jpg| 0| A girl , in a dress .\n0.jpg| 1| second\n1.jpg| 0| other\n",
        ),
    ],
)
def test_flickr_tables(tmp_path: Path, name: str, text: str) -> None:
    pictures(tmp_path / "Images", 2)
    (tmp_path / name).write_text(text)
    said = [r.captions for r in read_source(tmp_path / name).records]
    if name == "results.csv":
        assert said == [("A girl , in a dress .", "second"), ("other",)]
    else:  # the row that a comma makes too long is not guessed at
        assert said == [("second",), ("other",)]
