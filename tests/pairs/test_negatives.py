"""Hard negatives are false, fluent and near; those that are written are taken as they are."""

from __future__ import annotations

from typing import Any

import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs.negatives import ALL, false_versions, swapped, written


class One:
    """Shards of one sample."""

    def __init__(self, **record: Any) -> None:
        self.record = record

    def read_record(self, i: int) -> tuple[dict[str, Any], tuple[str, ...]]:
        return self.record, ()

    def where(self, i: int) -> str:
        return "a.tar/1.jpg"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red bird on a branch", "A blue bird on a branch"),
        ("Two dogs run", "Three dogs run"),
        ("the man on the left", "the man on the right"),
        ("a black dog and a white cat", "a white dog and a black cat"),
        ("a dog chasing a cat", "a cat chasing a dog"),
        ("A girl holding a balloon", "A balloon holding a girl"),
    ],
)
def test_rules_make_false_captions(caption: str, expected: str) -> None:
    versions = false_versions(caption)
    assert expected in versions
    assert caption not in versions and len(set(versions)) == len(versions)


@pytest.mark.parametrize(
    ("caption", "expected", "never"),
    [
        ("a red bird", "an orange bird", "a orange bird"),
        ("An old man sleeps", "A young man sleeps", "An young man sleeps"),
        ("an empty bowl", "a full bowl", "an full bowl"),
        ("a banana is red", "a banana is orange", "an banana is orange"),
        ("a man in front of a house", "a man behind a house", "a man in behind of a house"),
        ("a man behind the house", "a man in front of the house", "a man front the house"),
        ("toys left behind", "toys right behind", "toys left in front of"),
        ("the front of a house", None, "the behind of a house"),
        ("three dogs chasing a cat", "two dogs chasing a cat", "three cat chasing a dogs"),
        ("the dogs chasing the cat", "the dogs chasing the bird", "the cat chasing the dogs"),
        ("the dog chasing a man", "the dog chasing a woman", "the man chasing a dog"),
        ("two sheep", "three sheep", "two dog"),
        ("two dogs chasing two birds", "two birds chasing two dogs", None),
        ("a dog chasing an owl", "an owl chasing a dog", "a owl chasing an dog"),
        ("an old dog chasing an owl", "an old owl chasing a dog", "an old owl chasing an dog"),
        ("a black dog near an orange cat", "an orange dog near a black cat", "a orange dog near an black cat"),
        (
            "three black dogs near an orange cat",
            "three orange dogs near a black cat",
            "three black cat near an orange dogs",
        ),
    ],
)
def test_false_captions_stay_grammatical(caption: str, expected: str | None, never: str | None) -> None:
    versions = false_versions(caption)
    assert expected is None or expected in versions, versions
    assert never not in versions


@pytest.mark.parametrize("caption", ["a dog and a cat", "a tree", "", "redbrick coloured", "a cat next to a dog"])
def test_what_would_stay_true_is_not_made(caption: str) -> None:
    swapped_things = [v for v in false_versions(caption) if sorted(v.split()) == sorted(caption.split())]
    assert swapped_things == []


def test_one_is_drawn_for_each_caption_by_the_seed() -> None:
    captions = ("a red bird", "a tree", "two dogs")
    drawn = {tuple(swapped(One(), 0, seed, captions)) for seed in range(60)}  # type: ignore[arg-type]
    assert all(len(d) == 2 for d in drawn) and len(drawn) > 20
    every = swapped(One(), 0, ALL, captions)  # type: ignore[arg-type]
    assert all(set(d) <= set(every) for d in drawn)
    assert swapped(One(), 0, 5, captions) == swapped(One(), 0, 5, captions)  # type: ignore[arg-type]


def test_written_ones_are_read() -> None:
    assert written(One(negative="a blue bird"), 0, 3, ()) == ["a blue bird"]  # type: ignore[arg-type]
    assert written(One(), 0, 3, ()) == written(One(negative=[" "]), 0, 3, ()) == []  # type: ignore[arg-type]
    many = One(negative=["x", "y"])
    assert {written(many, 0, s, ())[0] for s in range(30)} == {"x", "y"}  # type: ignore[arg-type]
    assert written(many, 0, ALL, ()) == ["x", "y"]  # type: ignore[arg-type]
    with pytest.raises(ClipkitError, match=r"a.tar/1.jpg: its `negative` is 7"):
        written(One(negative=7), 0, 3, ())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["Negative", "hard_negative", "CONTRADICTION"])
def test_their_field_goes_by_other_names_in_whatever_case(name: str) -> None:
    assert written(One(**{name: "a blue bird"}), 0, 3, ()) == ["a blue bird"]  # type: ignore[arg-type]
    with pytest.raises(ClipkitError, match=f"its `{name}` is 7"):
        written(One(**{name: 7}), 0, 3, ())  # type: ignore[arg-type]
