"""Copies are found whatever was done to them, other pictures are not, and all copies fall in one split."""

from __future__ import annotations

import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from data_prep_helpers import captions, picture, samples
from PIL import Image

from clipkit.errors import ClipkitError
from data_prep import PlanRule, Record, SplitRule, write_shards
from data_prep.copies import embedding_pairs
from data_prep.images import checked_picture
from data_prep.looks import MAX_BITS, MAX_DIFFERENCE, near_copies
from data_prep.planning import Copies


def scene(seed: int, side: int = 96) -> Image.Image:
    """A picture with shapes, as photographs have and noise has not."""
    small = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((side * 4 // 3, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, quality: int = 90, format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, quality=quality)
    return buffer.getvalue()


def looks(datas: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    found = [checked_picture(data, with_look=True).look for data in datas]
    tiny = np.frombuffer(b"".join(look.tiny for look in found if look), np.uint8).reshape(len(datas), -1)
    return np.array([look.phash for look in found if look], np.uint64), tiny


def test_scaled_and_compressed_pictures_are_copies_and_others_are_not() -> None:
    datas = []
    for seed in range(40):
        image = scene(seed)
        datas += [
            encoded(image),
            encoded(image, 25),
            encoded(image.resize((64, 48), Image.Resampling.LANCZOS)),
            encoded(image.resize((512, 384), Image.Resampling.BICUBIC), 80, "WEBP"),
        ]
    pairs = near_copies(*looks(datas))
    assert all(a // 4 == b // 4 for a, b in pairs)
    together = defaultdict(set)
    for a, b in pairs:
        together[a // 4].update((a % 4, b % 4))
    assert sum(len(members) == 4 for members in together.values()) >= 38


def test_brightness_and_colour_tell_apart_what_the_hash_confuses() -> None:
    image = scene(1)
    dark = image.point(lambda value: value // 2)
    (one, other), tiny = looks([encoded(image, 95), encoded(dark, 95)])
    assert int(one ^ other).bit_count() <= MAX_BITS  # so the hash alone takes them for copies
    assert not near_copies(np.array([one, other]), tiny)


def test_near_copies_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 30).astype(np.uint64)
    flips = np.array(
        [
            np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, k).astype(np.uint64))
            for k in rng.integers(0, 7, 400)
        ]
    )
    hashes = base[rng.integers(0, 30, 400)] ^ flips
    tiny = rng.integers(100, 120, (400, 192)).astype(np.uint8)
    expected = set()
    for a in range(400):
        for b in range(a + 1, 400):
            bits = int(hashes[a] ^ hashes[b]).bit_count()
            if bits <= MAX_BITS and np.abs(tiny[a].astype(int) - tiny[b]).mean() <= MAX_DIFFERENCE:
                expected.add((a, b))
    assert len(expected) > 100 and set(near_copies(hashes, tiny)) == expected


def test_a_crowd_of_equal_pictures_is_quick() -> None:
    assert len(near_copies(np.zeros(20_000, np.uint64), np.zeros((20_000, 192), np.uint8))) == 19_999


def test_embedding_pairs() -> None:
    rows = np.array([[1, 0], [0, 1], [0.999, 0.0447], [0, 0], [0, 1]], np.float32)
    assert embedding_pairs(rows, 0.99) == [(0, 2), (1, 4)]


def many(n: int = 60) -> list[Record]:
    """Pictures, each with a compressed and a scaled copy far away in the order."""
    images = [scene(seed) for seed in range(n)]
    kinds = [encoded, lambda i: encoded(i, 40), lambda i: encoded(i.resize((64, 48)))]
    return [
        Record(f"{k}-{i}", kind(image), (f"{i}",), {"of": i})
        for k, kind in enumerate(kinds)
        for i, image in enumerate(images)
    ]


def places(out: Path) -> dict[int, set[str]]:
    where = defaultdict(set)
    for folder in out.iterdir():
        if folder.is_dir():
            for sample in samples(out, folder.name).values():
                where[sample["json"]["of"]].add(folder.name)
    return where


def test_all_copies_fall_in_one_split(tmp_path: Path) -> None:
    summary = write_shards(many(), tmp_path / "a", rule=PlanRule(SplitRule(0.3, 0.2), "near"))
    assert all(len(splits) == 1 for splits in places(tmp_path / "a").values())
    assert summary.samples == 180 and summary.copies >= 115 and len(summary.splits) == 3
    write_shards(many(), tmp_path / "b", rule=PlanRule(SplitRule(0.3, 0.2), "off"))
    assert sum(len(splits) > 1 for splits in places(tmp_path / "b").values()) > 10  # so the rule does something


def test_groups_stay_together(tmp_path: Path) -> None:
    group = [Record(str(i), picture(i), ("c",), {"of": i % 20, "film": f"film {i % 20}"}) for i in range(200)]
    write_shards(group, tmp_path / "a", rule=PlanRule(SplitRule(0.3, 0.3), group="film"))
    assert all(len(splits) == 1 for splits in places(tmp_path / "a").values())
    assert {s for splits in places(tmp_path / "a").values() for s in splits} == {"train", "val", "test"}


def test_groups_that_share_a_copy_stay_together(tmp_path: Path) -> None:
    """A picture of group 2k is a copy of one of group 2k + 1, so both groups are one."""
    given = [
        Record(f"{i}", encoded(scene(i // 2 if i % 40 < 20 else 1000 + i)), ("c",), {"of": i % 20 // 2, "film": i % 20})
        for i in range(80)
    ]
    write_shards(given, tmp_path / "a", rule=PlanRule(SplitRule(0.3, 0.3), group="film"))
    assert all(len(splits) == 1 for splits in places(tmp_path / "a").values())


def test_dropped_copies_leave_the_largest_and_their_captions(tmp_path: Path) -> None:
    small, large = encoded(scene(1)), encoded(scene(1).resize((256, 192)))
    given = [
        Record("small", small, ("one",)),
        Record("large", large, ("two",)),
        Record("large again", large, ("three", "two")),
        Record("other", encoded(scene(2)), ("four",)),
    ]
    summary = write_shards(given, tmp_path / "a", rule=PlanRule(SplitRule(), "near", drop_copies=True))
    assert captions(tmp_path / "a") == [["two", "three"], ["four"]]
    assert summary.skipped == 2 and {s.kind for s in summary.first_skipped} == {"copy"}
    assert [s.reason for s in summary.first_skipped] == [
        "a copy of large",
        "a copy of large, which has its captions now",
    ]


def test_splits_of_the_source_stay_and_training_gives_way(tmp_path: Path) -> None:
    data = encoded(scene(1))
    given = [
        Record("t", data, ("t",), split="train"),
        Record("v", encoded(scene(1), 40), ("v",), split="val"),
        Record("w", data, ("w",), split="val"),
        Record("u", encoded(scene(2)), ("u",), split="train"),
    ]
    summary = write_shards(given, tmp_path / "a", rule=PlanRule(SplitRule(0.5)))
    assert captions(tmp_path / "a", "val") == [["v"], ["w"]] and captions(tmp_path / "a") == [["u"]]
    assert [(s.file, s.reason) for s in summary.first_skipped] == [("t", "a copy of v, which is in val")]


def test_decontamination(tmp_path: Path) -> None:
    given = [Record(str(i), encoded(scene(i)), (str(i),)) for i in range(6)]
    held_out = [Record("x", encoded(scene(3), 50), ()), Record("y", encoded(scene(77)), ())]
    summary = write_shards(given, tmp_path / "a", rule=PlanRule(SplitRule()), evaluation=held_out)
    assert captions(tmp_path / "a") == [["0"], ["1"], ["2"], ["4"], ["5"]]
    assert summary.first_skipped[0].kind == "evaluation" and summary.first_skipped[0].file == "3"


@pytest.mark.parametrize("find_copies", ["exact", "off"])
def test_decontamination_without_looks_is_by_the_bytes(tmp_path: Path, find_copies: Copies) -> None:
    given = [Record(str(i), encoded(scene(i)), (str(i),)) for i in range(4)]
    held_out = [Record("x", encoded(scene(2)), ()), Record("y", encoded(scene(1), 50), ())]
    rule = PlanRule(SplitRule(), find_copies)
    write_shards(given, tmp_path / "a", rule=rule, evaluation=held_out)
    assert captions(tmp_path / "a") == [["0"], ["1"], ["3"]]
    with pytest.raises(ClipkitError, match=r"here: nothing is left: .* evaluation sets hold all 4 good pictures"):
        write_shards([*given, Record("z", b"bad", ("z",))], tmp_path / "b", rule=rule, evaluation=given, source="here")


def test_shuffled_samples_are_the_same_samples(tmp_path: Path) -> None:
    given = [Record(str(i), picture(i), (str(i),)) for i in range(50)]
    write_shards(given, tmp_path / "a", rule=PlanRule(SplitRule(), shuffle=True))
    write_shards(given, tmp_path / "b", rule=PlanRule(SplitRule(seed=1), shuffle=True))
    a, b = captions(tmp_path / "a"), captions(tmp_path / "b")
    assert a != b and sorted(a) == sorted(b) == sorted([str(i)] for i in range(50)) and a != sorted(a)


def test_the_same_data_set_again_is_free_and_another_is_refused(tmp_path: Path) -> None:
    given = [Record(str(i), picture(i), (str(i),)) for i in range(5)]
    first = write_shards(given, tmp_path / "a")
    stamp = (tmp_path / "a" / "dataset.json").stat().st_mtime_ns
    again = write_shards(given, tmp_path / "a")
    assert again.fingerprint == first.fingerprint and again.reused and "there already" in str(again)
    assert (tmp_path / "a" / "dataset.json").stat().st_mtime_ns == stamp
    with pytest.raises(ClipkitError, match="made in another way"):
        write_shards(given, tmp_path / "a", samples_per_shard=3)
