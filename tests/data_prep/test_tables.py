"""Tables of every kind become records, and every mistake in them is named with its fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data_prep_helpers import captions, picture, pictures, said, table

from clipkit.errors import ClipkitError
from data_prep.prepare import prepare
from data_prep.tables import caption_texts, read_table


def test_rows_of_a_picture_are_one_record_in_the_order_of_first_appearance(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    path = table(tmp_path, "filepath,caption,label\n1.jpg,b one,x\n0.jpg,a,y\n./1.jpg,b two,z\n1.jpg,b one,x\n")
    source = read_table(path)
    assert [r.captions for r in source.records] == [("b one", "b two"), ("a",)]
    assert source.records[0].meta == {"label": "x", "file": "1.jpg"}
    assert [r.key for r in source.records] == ["00000000", "00000001"]
    assert not source.skipped


def test_a_table_of_pictures_and_labels_alone(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    path = table(tmp_path, "filepath,label\n0.jpg,cat\n1.jpg,\n")
    with pytest.raises(ClipkitError, match="no column for the captions"):
        read_table(path)
    source = read_table(path, captions_optional=True)
    assert [(r.captions, r.meta.get("label")) for r in source.records] == [((), "cat"), ((), None)]
    assert not source.skipped
    with pytest.raises(ClipkitError, match="no column 'text'"):
        read_table(path, captions_optional=True, caption_column="text")
    some = table(tmp_path, "filepath,caption\n0.jpg,a cat\n1.jpg,\n0.jpg,\n", "some.csv")
    assert [r.captions for r in read_table(some, captions_optional=True).records] == [("a cat",), ()]


def test_a_picture_of_two_splits_is_in_the_one_that_counts_more_and_listed(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    rows = ["0.jpg,a,train", "0.jpg,b,test", "1.jpg,c,val", "1.jpg,d,train", "1.jpg,e,valid", "2.jpg,f,train"]
    path = table(tmp_path, "\n".join(["image,caption,split", *rows]))
    summary = prepare(path, tmp_path / "out", split_column="split", processes=1)
    assert {split: captions(tmp_path / "out", split) for split in summary.splits} == {
        "train": [["f"]],
        "val": [["c", "e"]],
        "test": [["b"]],
    }
    assert [(Path(s.file).name, s.kind, s.reason.split(", ")[1]) for s in summary.first_skipped] == [
        ("0.jpg", "copy", "which is in test"),
        ("1.jpg", "copy", "which is in val"),
    ]


def test_unicode_paths_and_spaces(tmp_path: Path) -> None:
    folder = tmp_path / "Fotos für 猫"
    (path,) = pictures(folder, 1)
    path.rename(folder / "grün 😀.jpg")
    assert said(table(folder, "img,title\ngrün 😀.jpg,eine Katze\n")) == {"grün 😀.jpg": ("eine Katze",)}


def test_image_root_absolute_paths_and_backslashes(tmp_path: Path) -> None:
    paths = pictures(tmp_path / "photos" / "val", 2)
    path = table(tmp_path, f"file,caption\nval\\0.jpg,a\n{paths[1]},b\n")
    assert said(path, image_root=tmp_path / "photos") == {"0.jpg": ("a",), "1.jpg": ("b",)}
    with pytest.raises(ClipkitError, match="no such folder; check --image-root"):
        read_table(path, image_root=tmp_path / "nowhere")


def test_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pictures(tmp_path / "home" / "photos", 1)
    assert said(table(tmp_path, "image,caption\n~/photos/0.jpg,a\n")) == {"0.jpg": ("a",)}


def test_columns_are_found_in_any_case_and_can_be_named(tmp_path: Path) -> None:
    pictures(tmp_path, 1)
    assert said(table(tmp_path, "FileName , Caption\n0.jpg, a\n")) == {"0.jpg": ("a",)}
    path = table(tmp_path, "foto,label\n0.jpg,cat\n", "b.csv")
    source = read_table(path, image_column="foto", caption_column="label")
    assert source.records[0].captions == ("cat",)
    assert source.records[0].meta["label"] == "cat"


def test_jsonl_with_lists_and_bad_lines(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    lines = [
        json.dumps({"image": "0.jpg", "captions": ["a", "b", None, " "], "n": 3, "box": [1, 2]}),
        "{not json",
        "[1]",
        json.dumps({"image": "1.jpg", "captions": "line\u2028separator"}, ensure_ascii=False),
    ]
    source = read_table(table(tmp_path, "\n".join(lines), "c.jsonl"))
    assert [r.captions for r in source.records] == [("a", "b"), ("line separator",)]
    assert source.records[0].meta == {"n": 3, "box": [1, 2], "file": "0.jpg"}
    assert [s.file for s in source.skipped] == ["c.jsonl line 2", "c.jsonl line 3"]
    assert all(s.row for s in source.skipped)


def test_parquet_with_lists_and_with_pictures_inside(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pictures(tmp_path, 2)
    rows = {"image": ["0.jpg", "1.jpg"], "caption": [["a", "b"], []], "x": [float("nan"), 1.0]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    source = read_table(tmp_path / "a.parquet")
    assert [r.captions for r in source.records] == [("a", "b")]
    assert source.records[0].meta == {"file": "0.jpg"}
    assert "empty caption" in source.skipped[0].reason
    inside = [{"bytes": picture(5), "path": "five.jpg"}, {"bytes": picture(5), "path": "five.jpg"}]
    pq.write_table(pa.table({"image": inside, "caption": ["c", "d"]}), tmp_path / "b.parquet")
    (record,) = read_table(tmp_path / "b.parquet").records
    assert (record.image(), record.captions, record.name) == (picture(5), ("c", "d"), "five.jpg")  # type: ignore[operator]
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    with pytest.raises(ClipkitError, match=r"c.parquet: not a parquet file"):
        read_table(tmp_path / "c.parquet")


def test_bad_rows_are_listed_and_the_rest_is_used(tmp_path: Path) -> None:
    pictures(tmp_path, 2)
    text = (
        "image,caption\n0.jpg,good\n0.jpg,   \n1.jpg,\ngone.jpg,a\ngone.jpg,b\n,nothing\n"
        "ftp://example.org/x.jpg,far\n0.jpg,one, two\n"
    )
    source = read_table(table(tmp_path, text))
    assert [r.captions for r in source.records] == [("good",)]
    reasons = [s.reason for s in source.skipped]
    assert [
        sum(word in r for r in reasons)
        for word in ("empty caption", "no such file", "no picture", "neither http", "quotes")
    ] == [
        2,
        1,  # said once, not once a caption
        1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "image,words\n0.jpg,a\n",
            {},
            "no column for the captions; its columns are image, words: pass --caption-column",
        ),
        ("place,text\n0.jpg,a\n", {}, "no column for the pictures; its columns are place, text: pass --image-column"),
        (
            "image,caption\n0.jpg,a\n",
            {"caption_column": "zzz"},
            "no column 'zzz'; its columns are image, caption: pass --c",
        ),
        ("image,caption\n0.jpg,a\n", {"caption_column": "captoin"}, "did you mean 'caption'"),
        ("", {}, "is empty"),
        ("image,caption\n", {}, "has a header but no rows"),
        ("image,caption\nx.jpg,a\ny.jpg,b\n", {}, "none of its 2 rows can be used .*x.jpg: no such file.*--image-root"),
        ("image,caption\n0.jpg,\n", {}, "none of its 1 rows can be used .*empty caption"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, options: dict[str, str], message: str) -> None:
    pictures(tmp_path, 1)
    with pytest.raises(ClipkitError, match=message) as caught:
        read_table(table(tmp_path, text), **options)  # type: ignore[arg-type]
    assert "captions.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_missing_table_and_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match=r"nowhere.csv: no such file"):
        read_table(tmp_path / "nowhere.csv")
    with pytest.raises(ClipkitError, match="not a table"):
        read_table(table(tmp_path, "x", "a.xlsx"))


def test_pictures_inside_parquet_stay_there_until_they_are_needed(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    encoded = [picture(i) for i in range(7)]
    inside = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(encoded)]
    texts = [f"number {i}".encode() for i in range(7)]  # text that is not marked as such
    columns = {"image": inside, "caption": texts, "thumb": encoded}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=3)
    records = read_table(tmp_path / "a.parquet").records
    assert all(callable(record.image) for record in records), "nothing is held in memory"
    assert [record.image() for record in records] == encoded  # type: ignore[operator]
    assert [record.captions for record in records] == [(f"number {i}",) for i in range(7)]
    assert [record.meta["file"] for record in records] == [f"{i}.png" for i in range(7)]
    assert all("thumb" not in {k for k, v in record.meta.items() if v is not None} for record in records)
    plain = pa.table({"image": encoded, "caption": texts})
    pq.write_table(plain, tmp_path / "B.PARQUET", row_group_size=2)
    assert [r.image() for r in read_table(tmp_path / "B.PARQUET").records] == encoded  # type: ignore[operator]


def test_captions_in_objects_and_what_is_no_caption(tmp_path: Path) -> None:
    pictures(tmp_path, 6)
    cells = [
        [{"raw": "a dog", "tokens": ["a", "dog"]}, {"raw": "the dog"}],
        {"raw": ["a cat", "the cat"], "tokens": [["a"], ["the"]]},
        {"caption": "a bird"},
        {"en": "a fish"},
        ["a fox", {"id": 3}, ["x"]],
        7,
    ]
    lines = [json.dumps({"image": f"{n}.jpg", "sentences": cell}) for n, cell in enumerate(cells)]
    source = read_table(table(tmp_path, "\n".join(lines), "c.jsonl"))
    assert [r.captions for r in source.records] == [
        ("a dog", "the dog"),
        ("a cat", "the cat"),
        ("a bird",),
        ("a fox",),
        ("7",),
    ]
    assert [("object without raw" in s.reason, "a list" in s.reason) for s in source.skipped] == [
        (True, False),
        (False, True),
    ]


@pytest.mark.parametrize("cell", ['["a dog .", "two \\"cats\\""]', "['a dog .', 'two \"cats\"']"])
def test_a_list_of_captions_written_as_text(cell: str) -> None:
    """As Flickr30k's table on the Hugging Face hub has them, and as pandas writes lists."""
    assert caption_texts(cell) == (["a dog .", 'two "cats"'], "")


@pytest.mark.parametrize("cell", ["[a dog]", "[1, 2]", "[] empty", '["a", 2]', "[" * 50_000, "['a'"])
def test_a_caption_may_begin_with_a_bracket(cell: str) -> None:
    assert caption_texts(cell) == ([cell], "")
