"""What is written is deterministic, readable by others, and checked."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_prep_helpers import captions, content, picture, pictures, records, samples, tree
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.pairs.shards import open_shards
from data_prep.images import Encoding
from data_prep.planning import PlanRule, SplitRule
from data_prep.records import Record
from data_prep.shards import write_shards
from data_prep.stage import read_facts, stage, stage_tasks


def test_shards_are_equal_byte_for_byte(tmp_path: Path) -> None:
    write_shards(records(25), tmp_path / "a", samples_per_shard=10, processes=1)
    time.sleep(1.1)  # a tar that held the time would differ now
    summary = write_shards(records(25), tmp_path / "b", samples_per_shard=10, processes=4)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    beside = ("", ".index.npz", ".scores.parquet")
    assert sorted(tree(tmp_path / "b")) == [
        "dataset.json",
        *(f"train/00000{i}.tar{suffix}" for i in range(3) for suffix in beside),
    ]
    assert (summary.samples, summary.splits["train"].shards, summary.splits["train"].captions) == (25, 3, 50)
    with tarfile.open(tmp_path / "a" / "train" / "000000.tar") as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:3]] == ["000000.jpg", "000000.json", "000001.jpg"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_dataset_json(tmp_path: Path) -> None:
    summary = write_shards(records(5), tmp_path / "a", source="here", license="mine", details={"extra": 1})
    written = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert len(written.pop("inputs")) == 32
    assert written == {
        "format": 2,
        "splits": {"train": {"samples": 5, "shards": 1, "captions": 10}},
        "source": "here",
        "fingerprint": summary.fingerprint,
        "labels": [0, 1, 2],
        "license": "mine",
        "copies": 0,
        "skipped": 0,
        "mendable": 0,
        "extra": 1,
    }
    assert json.loads(json.dumps(summary.to_dict()))["splits"]["train"]["samples"] == 5


def test_labels_of_any_kind(tmp_path: Path) -> None:
    labels = [["a", 1], {"x": 2}, 3, None, "half \ud83d"]
    given = [Record(str(i), picture(i), ("c",), {"label": label}) for i, label in enumerate(labels)]
    write_shards(given, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "dataset.json").read_bytes())
    assert said["labels"] == [3, "['a', 1]", "half \ud83d", "{'x': 2}"]
    assert [s["json"]["label"] for s in samples(tmp_path / "out").values()] == labels


def test_staged_pictures_whose_facts_are_damaged_are_staged_again(tmp_path: Path) -> None:
    """What a power failure leaves of a preparation that was interrupted."""
    (task,) = stage_tasks(records(3), tmp_path, Encoding(), True, True)
    before = stage(task)
    place = task.path.with_suffix(".npz")
    whole = place.read_bytes()
    cut = [whole[:n] for n in (*range(0, 200, 7), *range(200, len(whole), 301))]
    flipped = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(0, len(whole), 23)]
    for data in [*cut, bytes(len(whole)), *flipped]:
        place.write_bytes(data)
        read = read_facts(task.path, task.inputs)
        assert read is None or all((read[name] == before[name]).all() for name in before.columns)
    place.write_bytes(whole[: len(whole) // 2])
    assert (stage(task)["content"] == before["content"]).all() and place.read_bytes() == whole


def test_clipkit_and_webdataset_read_them(tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset")
    write_shards(records(12), tmp_path / "a", samples_per_shard=5)
    ours = open_shards(tmp_path / "a" / "train")
    theirs = list(wds.WebDataset(str(tmp_path / "a" / "train" / "{000000..000002}.tar"), shardshuffle=False))
    assert len(ours) == len(theirs) == 12 and not ours.problems
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        assert mine.key == other["__key__"] == f"{i:06d}"
        assert mine.image == other["jpg"] == picture(i)
        assert mine.captions == tuple(json.loads(other["json"])["captions"]) == (f"caption {i}", f"other {i}")


@pytest.mark.parametrize(("format", "ext"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_these_stay_as_they_are(tmp_path: Path, format: str, ext: str) -> None:
    data = picture(1, format=format)
    write_shards([Record("k", data, ("c",))], tmp_path / "a")
    assert samples(tmp_path / "a")["k"] == {"image": data, "ext": ext, "json": {"captions": ["c"]}}


@pytest.mark.parametrize(
    ("format", "mode"), [("BMP", "RGB"), ("GIF", "P"), ("TIFF", "CMYK"), ("TIFF", "RGB"), ("TIFF", "L")]
)
def test_others_become_png(tmp_path: Path, format: str, mode: str) -> None:
    data = picture(1, format=format, mode=mode)
    write_shards([Record("k", data, ("c",))], tmp_path / "a", verify=False)
    sample = samples(tmp_path / "a")["k"]
    assert sample["ext"] == "png"
    got = np.asarray(Image.open(io.BytesIO(sample["image"])).convert("RGB"))
    assert np.array_equal(got, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def claims(width: int, height: int) -> bytes:
    """A PNG whose header says that it is that large."""
    small = picture(format="PNG")
    header = b"IHDR" + struct.pack(">II", width, height) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_bad_pictures_are_skipped_counted_and_listed(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    good = pictures(folder, 6)
    whole = picture(9, size=(200, 200))
    bad = {
        "empty.jpg": b"",
        "text.jpg": b"<html>404</html>",
        "cut.jpg": whole[: len(whole) // 2],
        "cut.png": picture(9, size=(200, 200), format="PNG")[:-2000],
    }
    for name, data in bad.items():
        (folder / name).write_bytes(data)
    (folder / "bomb.png").write_bytes(claims(30_000, 30_000))
    (folder / "big.png").write_bytes(claims(10_000, 9_500))  # above Pillow's warning, below its error
    files = [*good, *(folder / name for name in bad), folder / "bomb.png", folder / "big.png", folder / "gone.jpg"]
    summary = write_shards([Record(p.name, p, ("c",)) for p in files], tmp_path / "out", max_bad_fraction=0.6)
    assert summary.samples == 6 and summary.skipped == 7 and len(summary.first_skipped) == 5
    assert summary.skipped_file is not None
    listed = [json.loads(line) for line in summary.skipped_file.read_text().splitlines()]
    assert [Path(entry["file"]).name for entry in listed] == [*bad, "bomb.png", "big.png", "gone.jpg"]
    reasons = " | ".join(entry["reason"] for entry in listed)
    for word in ("empty", "not a picture", "truncated", "bomb", "No such file"):
        assert word in reasons
    assert "skipped: 7" in str(summary) and str(summary.skipped_file) in str(summary)


def test_too_many_bad_pictures_write_nothing(tmp_path: Path) -> None:
    mixed = [Record(str(i), b"bad" if i else picture(), ("c",)) for i in range(4)]
    with pytest.raises(ClipkitError, match=r"here: 3 of 4 pictures cannot be used .*--max-bad-fraction 1"):
        write_shards(mixed, tmp_path / "out", source="here")
    assert not (tmp_path / "out").exists()
    assert write_shards(mixed, tmp_path / "out", max_bad_fraction=1).samples == 1
    with pytest.raises(ClipkitError, match="not one good picture"):
        write_shards(mixed[1:], tmp_path / "other", max_bad_fraction=1)


def test_keys_are_safe_and_unique(tmp_path: Path) -> None:
    keys = ["a/b.c", "a_b_c", "A_b_c", "..", "größe", "", "x" * 300]
    write_shards([Record(k, picture(i), ("c",)) for i, k in enumerate(keys)], tmp_path / "out")
    assert list(samples(tmp_path / "out")) == ["a_b_c", "a_b_c-2", "A_b_c-3", "sample", "gr_e", "sample-2", "x" * 100]


def test_meta_cannot_replace_the_captions(tmp_path: Path) -> None:
    write_shards(
        [Record("k", picture(), ("mine",), {"captions": ["other"], "names": {"de": ["Größe"]}})], tmp_path / "out"
    )
    assert samples(tmp_path / "out")["k"]["json"] == {"captions": ["mine"], "names": {"de": ["Größe"]}}


def test_a_function_as_a_picture(tmp_path: Path) -> None:
    write_shards([Record("k", lambda: picture(3), ("c",))], tmp_path / "out")
    assert samples(tmp_path / "out")["k"]["image"] == picture(3)


def test_split_rule_keeps_equal_pictures_together(tmp_path: Path) -> None:
    many = [Record(str(i), picture(i % 100, size=(4, 4)), (f"c{i}",)) for i in range(300)]
    summary = write_shards(many, tmp_path / "a", rule=PlanRule(SplitRule(0.2, 0.3, seed=1), "off"))
    where: dict[bytes, set[str]] = {}
    for split in summary.splits:
        for sample in samples(tmp_path / "a", split).values():
            where.setdefault(sample["image"], set()).add(split)
    assert len(where) == 100 and all(len(splits) == 1 for splits in where.values())
    counts = {split: sum(split in s for s in where.values()) for split in ("train", "val", "test")}
    assert 35 <= counts["train"] <= 65 and 10 <= counts["val"] <= 32 and 18 <= counts["test"] <= 42
    other = write_shards(many, tmp_path / "b", rule=PlanRule(SplitRule(0.2, 0.3, seed=2), "off"))
    assert captions(tmp_path / "a", "test") != captions(tmp_path / "b", "test") and other.samples == 300
    with pytest.raises(ClipkitError, match="--split-val"):
        SplitRule(0.6, 0.4)


def test_own_split_goes_before_the_rule(tmp_path: Path) -> None:
    mine = [Record(str(i), picture(i), ("c",), split="val") for i in range(5)]
    assert list(write_shards(mine, tmp_path / "a", rule=PlanRule(SplitRule(0, 0.9), "off")).splits) == ["val"]


def test_a_group_that_no_record_has_is_refused(tmp_path: Path) -> None:
    records = [Record(str(i), picture(i), ("c",), {"patient": i}) for i in range(3)]
    with pytest.raises(ClipkitError, match=r"--group pateint: no record has such a field; did you mean 'patient'\?"):
        write_shards(records, tmp_path / "out", rule=PlanRule(SplitRule(0.5), group="pateint"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ClipkitError, match="--group patient: no record has such a field; there are none"):
        write_shards(
            [Record("a", picture(0), ("c",))], tmp_path / "out", rule=PlanRule(SplitRule(0.5), group="patient")
        )


def test_a_split_that_got_no_picture_is_told(tmp_path: Path) -> None:
    records = [Record(str(i), picture(i), ("c",)) for i in range(2)]
    for _ in range(2):  # the second time it is there already
        summary = write_shards(records, tmp_path / "a", rule=PlanRule(SplitRule(0.01, 0.01)))
        assert summary.empty == ("val", "test") and "\n  val: no picture" in str(summary)
    mine = [replace(record, split="test") for record in records]
    assert write_shards(mine, tmp_path / "b", rule=PlanRule(SplitRule(0.01))).empty == ("train", "val")
    summary = write_shards(mine, tmp_path / "c")
    assert summary.empty == () and "no picture" not in str(summary), "nobody asked for others"
