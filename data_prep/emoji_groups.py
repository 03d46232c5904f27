"""Which emoji belong together, so that what is held out has really not been seen.

A group is all drawings of one thing: skin tones, genders, hair and directions of it. The rule is on the
English CLDR names (``family_of``); what names do not tell, the pictures do (``merge_lookalikes``): the flags
of Indonesia and Monaco have nothing in common but every pixel. A split takes or leaves a whole group
(``splits_of``).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_TONE = re.compile(r" ((?:medium-light|medium-dark|light|medium|dark) skin tone)\b")
_PEOPLE = frozenset(
    [
        "man",
        "woman",
        "men",
        "women",
        "person",
        "people",
        "boy",
        "girl",
        "child",
        "children",
        "adult",
        "male",
        "female",
        "man’s",
        "woman’s",
        "men’s",
        "women’s",
        "mr",
        "mrs",
        "mx",
        "santa",
    ]
)
_DIRECTIONS = frozenset(
    [
        "left",
        "right",
        "up",
        "down",
        "leftwards",
        "rightwards",
        "upwards",
        "downwards",
        "facing",
        "pointing",
        "pointed",
        "tilted",
    ]
)
_HAIR = re.compile(r" ?\b(?:(?:red|curly|white|blond) hair|bald|beard)$")
_COUPLES = re.compile(r"(?:family|couple with heart)\b.*|kiss(?: (?:man|woman|person)\b.*)?|.*\bholding hands")
_CLOCK = re.compile(r".+(?: o’clock|-thirty)")
# The same drawing under names that share no word.
_SAME = {
    "": "person",
    "old": "person",
    "older": "person",
    "merman": "mermaid",
    "merperson": "mermaid",
    "prince": "royalty",
    "princess": "royalty",
    "with crown": "royalty",
    "breast feeding": "feeding baby",
}
LOOKALIKE = 2.5  # mean absolute difference of two thumbnails, of 255, below which they are the same drawing
_LARGE = 60


def tone_of(name: str) -> tuple[str, str]:
    """An emoji's name without its skin tones, and those: ``("waving hand", "dark skin tone")``; ``""`` for
    none."""
    return _TONE.sub("", name), " ".join(_TONE.findall(name))


def family_of(name: str) -> str:
    """What is left of an English name without skin tone, gender, hair and direction.

    ``man running facing right dark skin tone`` and ``person running`` are both ``running``. Couples and
    families (with holding hands and kisses) are one family, so are the keycaps, the clock faces, and people
    who do nothing but have an age and hair.
    """
    base = tone_of(name)[0].lower()
    if _COUPLES.fullmatch(base):
        return "couple or family"
    if base.startswith("keycap "):
        return "keycap"
    if _CLOCK.fullmatch(base):
        return "clock face"
    words = [word.strip(".") for word in re.split(r"[ -]", _HAIR.sub("", base))]
    words = [word for word in words if word not in _PEOPLE]
    words = [word for word in words if word not in _DIRECTIONS] or words
    rest = " ".join(words)
    return _SAME.get(rest, rest)


def merge_lookalikes(families: Sequence[str], thumbnails_N: np.ndarray, bound: float = LOOKALIKE) -> list[str]:
    """Families joined wherever two of their pictures look the same; a joined family has the first of their
    names.

    Args:
        families: family of each picture.
        thumbnails_N: uint8 (N, H, W, 3).
        bound: two pictures are the same below this mean absolute difference per value, of 255.
    """
    parent = {family: family for family in families}

    def root(family: str) -> str:
        while parent[family] != family:
            parent[family] = family = parent[parent[family]]
        return family

    for i, j in lookalikes(thumbnails_N, bound):
        first, second = sorted((root(families[i]), root(families[j])))
        parent[second] = first
    return [root(family) for family in families]


def lookalikes(thumbnails_N: np.ndarray, bound: float) -> list[tuple[int, int]]:
    """All pairs of pictures whose mean absolute difference is below ``bound``.

    Averaging over blocks of pixels never makes that difference larger, so pairs that differ enough in the
    overall mean, or in a 4 x 4 picture, need no closer look; the result is the same as that of comparing all
    with all.
    """
    n, height, width, _ = thumbnails_N.shape
    coarse = thumbnails_N.reshape(n, 4, height // 4, 4, width // 4, 3).mean(axis=(2, 4), dtype=np.float32)
    coarse = coarse.reshape(n, -1)
    brightness = coarse.mean(axis=1)
    order = np.argsort(brightness, kind="stable")
    # A hair wider than the bound: these are rounded to float32.
    ends = np.searchsorted(brightness[order], brightness[order] + bound + 0.01)
    pairs = []
    for at, i in enumerate(order):
        near = order[at + 1 : ends[at]]
        near = near[np.abs(coarse[near] - coarse[i]).mean(axis=1) < bound + 0.01]
        if len(near):
            difference = np.abs(thumbnails_N[near].astype(np.int16) - thumbnails_N[i]).mean(axis=(1, 2, 3))
            pairs += [(int(i), int(j)) for j in near[difference < bound]]
    return pairs


def splits_of(groups: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """Split of each group, given the group and the label of every picture.

    Within each label about 17 % of the groups are for test and 8 % for validation, taken in the order of a hash of
    their names, so that every label is tested on its share. A group of more than 60 pictures (couples in all
    combinations of skin tones) is for training: it alone would be a third of the test split.
    """
    sizes = Counter(groups)
    label_of: dict[str, str] = {}
    for group, label in zip(groups, labels, strict=True):
        label_of.setdefault(group, label)
    splits = dict.fromkeys(label_of, "train")
    for label in sorted(set(label_of.values())):
        members = sorted((g for g in label_of if label_of[g] == label and sizes[g] <= _LARGE), key=_hash)
        n_test, n_val = round(0.17 * len(members)), round(0.08 * len(members))
        splits |= dict.fromkeys(members[:n_test], "test")
        splits |= dict.fromkeys(members[n_test : n_test + n_val], "val")
    return splits


def _hash(group: str) -> bytes:
    return hashlib.blake2b(group.encode(), digest_size=8).digest()
