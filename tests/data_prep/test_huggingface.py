"""Hugging Face data sets from disk, read with pyarrow alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_prep_helpers import captions, picture, pictures, samples

from clipkit.errors import ClipkitError
from data_prep import prepare, read_source

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["red_fox", "cat"], "_type": "ClassLabel"}}


def table(start: int, n: int, **columns: list[object]) -> pa.Table:
    images = [{"bytes": picture(start + i), "path": f"{start + i}.jpg"} for i in range(n)]
    return pa.table({"image": images, **columns})


def saved(folder: Path, rows: pa.Table, features: dict[str, object] | None = None) -> None:
    """What ``save_to_disk`` writes."""
    folder.mkdir(parents=True)
    place = str(folder / "data-00000-of-00001.arrow")
    with pa.OSFile(place, "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows, max_chunksize=2)
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text(json.dumps({"features": features or {}}))


def test_a_saved_data_set_with_splits(tmp_path: Path) -> None:
    saved(tmp_path / "d" / "train", table(0, 5, text=[["a", "b"], ["c"], ["d"], [], ["e"]]))
    saved(tmp_path / "d" / "validation", table(10, 1, text=[["v"]]))
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation"]}))
    prepare(tmp_path / "d", tmp_path / "out", processes=2)
    assert captions(tmp_path / "out") == [["a", "b"], ["c"], ["d"], ["e"]]
    assert captions(tmp_path / "out", "val") == [["v"]]
    stored = list(samples(tmp_path / "out").values())
    assert [s["image"] for s in stored] == [picture(i) for i in (0, 1, 2, 4)]
    assert stored[1]["json"] == {"captions": ["c"], "file": "1.jpg"}


def test_a_picture_of_two_splits_stays_in_the_one_that_counts_more(tmp_path: Path) -> None:
    saved(tmp_path / "d" / "train", table(0, 2, text=["a", "b"]))
    saved(tmp_path / "d" / "test", table(1, 1, text=["t"]))
    (tmp_path / "d" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    summary = prepare(tmp_path / "d", tmp_path / "out", processes=1)
    assert captions(tmp_path / "out") == [["a"]] and captions(tmp_path / "out", "test") == [["t"]]
    assert [entry.reason for entry in summary.first_skipped] == ["a copy of 1.jpg, which is in test"]


@pytest.mark.parametrize("state", [{}, {"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}])
def test_files_that_map_and_filter_left_are_no_data(tmp_path: Path, state: dict[str, object]) -> None:
    saved(tmp_path / "d", table(0, 2, text=["a", "b"]))
    saved(tmp_path / "other", table(0, 2, text=["A", "B"]))
    (tmp_path / "other" / "data-00000-of-00001.arrow").rename(tmp_path / "d" / "cache-0123456789abcdef.arrow")
    (tmp_path / "d" / "state.json").write_text(json.dumps(state))
    assert [r.captions for r in read_source(tmp_path / "d").records] == [("a",), ("b",)]


@pytest.mark.parametrize("state", ["{", "[]", '{"_data_files": [1]}', '{"_data_files": [{"filename": "gone.arrow"}]}'])
def test_a_damaged_state_is_named(tmp_path: Path, state: str) -> None:
    saved(tmp_path / "d", table(0, 2, text=["a", "b"]))
    (tmp_path / "d" / "state.json").write_text(state)
    with pytest.raises(ClipkitError, match=r"(state|gone).*; save the data set again"):
        read_source(tmp_path / "d")


def test_classes_become_captions(tmp_path: Path) -> None:
    saved(tmp_path / "d", table(0, 3, label=[1, 0, 1]), FEATURES)
    records = read_source(tmp_path / "d").records
    assert [(r.captions, r.meta["label"]) for r in records] == [
        (("a photo of a cat.",), "cat"),
        (("a photo of a red fox.",), "red fox"),
        (("a photo of a cat.",), "cat"),
    ]


def test_a_folder_of_parquet_files(tmp_path: Path) -> None:
    (tmp_path / "d" / "data").mkdir(parents=True)
    rows = table(0, 4, caption=["a", "b", "c", "d"])
    pq.write_table(rows, tmp_path / "d" / "data" / "train-00000-of-00001.parquet", row_group_size=3)
    pq.write_table(table(0, 1, caption=["again"]), tmp_path / "d" / "data" / "train-00001-of-00002.parquet")
    pq.write_table(table(9, 1, caption=["t"]), tmp_path / "d" / "data" / "test-00000-of-00001.parquet")
    prepare(tmp_path / "d", tmp_path / "out", processes=1)
    assert sorted(captions(tmp_path / "out")) == [["a", "again"], ["b"], ["c"], ["d"]]
    assert captions(tmp_path / "out", "test") == [["t"]]
    assert picture(3) in [s["image"] for s in samples(tmp_path / "out").values()]


def test_a_parquet_file_without_the_column_is_named(tmp_path: Path) -> None:
    cells = [{"bytes": picture(0), "path": "0.jpg"}]
    pq.write_table(pa.table({"image": cells, "caption": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"id": [1]}), tmp_path / "b.parquet")
    with pytest.raises(ClipkitError, match=r"b\.parquet: no column 'image', unlike other files; its columns are id"):
        read_source(tmp_path)


def test_a_time_that_python_cannot_hold_is_told(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(picture(0))
    late = pa.array([2**62], pa.timestamp("us"))
    pq.write_table(pa.table({"image": ["0.jpg"], "caption": ["a"], "t": late}), tmp_path / "a.parquet")
    with pytest.raises(ClipkitError, match=r"a\.parquet: .*out of range"):
        read_source(tmp_path / "a.parquet")


def test_a_folder_of_pictures_with_metadata(tmp_path: Path) -> None:
    pictures(tmp_path / "d" / "train", 2)
    lines = [{"file_name": f"train/{i}.jpg", "text": f"c{i}"} for i in range(2)]
    (tmp_path / "d" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [r.captions for r in read_source(tmp_path / "d").records] == [("c0",), ("c1",)]


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ClipkitError, match=r'nobody/nothing: no such file.*pip install "clipkit\[hub\]"'):
        read_source("nobody/nothing")
    saved(tmp_path / "d", table(0, 1, words=["x"]))
    with pytest.raises(ClipkitError, match=r"no column for the captions.*--caption-column"):
        read_source(tmp_path / "d")
    (tmp_path / "d" / "data-00000-of-00001.arrow").write_bytes(b"junk")
    with pytest.raises(ClipkitError, match=r"arrow: damaged"):
        read_source(tmp_path / "d")
