"""Hard negatives: captions that are almost right for a picture, and wrong.

Written ones come from the samples' own ``negative`` field, a caption or a list of them (its other names are in
``FIELDS``). Swapped ones are made by rule in the manner of SugarCrepe (Hsieh et al. 2023): a word is exchanged for
another of its kind, or two parts change places, so that the sentence stays fluent and becomes false.
"""

from __future__ import annotations

import re
from typing import Any

from clipkit.errors import ClipkitError
from clipkit.pairs.order import mix_int
from clipkit.pairs.shards import ShardSet

FIELDS = ("negative", "hard_negative", "contradiction")  # in whatever case
ALL = -1  # in a seed's place: every negative, not one drawn

# Words of a kind, any of which makes a caption false in another's place. Of phrases, "in front of" is the only one.
_KINDS = (
    ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey"],
    ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"],
    ["man", "woman", "boy", "girl"],
    ["dog", "cat", "horse", "cow", "bird"],
    ["left", "right"],
    ["above", "below"],
    ["inside", "outside"],
    ["in front of", "behind"],
    ["small", "large"],
    ["young", "old"],
    ["day", "night"],
    ["sitting", "standing", "running", "sleeping", "jumping"],
    ["smiling", "crying"],
    ["open", "closed"],
    ["empty", "full"],
)
_KIND_OF = {word: kind for kind in _KINDS for word in kind}
_ARTICLE = r"(?:an?|the|one|two|three|some)"
# What is left behind, or seen from behind, is in front of nothing: a thing has to follow.
_WORD = re.compile(
    rf"\bin front of\b|\bbehind(?= (?:{_ARTICLE}|his|her|its|their) )|\b(?!behind\b)[a-z]+", re.IGNORECASE
)
_A_BEFORE = re.compile(r"\b(an?) $", re.IGNORECASE)
_AN = re.compile(r"(?!uni|use|eu|one)[aeiou]|hour|hono", re.IGNORECASE)  # how a word begins that has "an" before it
_MANY = re.compile(r"men|women|children|people|\w+[^su]s", re.IGNORECASE)
# "a black dog and a white cat": what is said of two things is said of the other one
_TWO_THINGS = re.compile(
    rf"\b({_ARTICLE}) ((?:\w+ )?)(\w+) (and|with|next to|beside|behind|under|on|near|chasing|holding|riding) "
    rf"({_ARTICLE}) ((?:\w+ )?)(\w+)\b",
    re.IGNORECASE,
)


def written(shards: ShardSet, sample: int, seed: int, captions: tuple[str, ...]) -> list[str]:
    """The sample's own negatives, one drawn by ``seed`` (or ``ALL``); none where it has none.

    Raises:
        ClipkitError: the field holds something else than text.
    """
    name, found = negative_field(shards.read_record(sample)[0])
    texts = [found] if isinstance(found, str) else [] if found is None else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ClipkitError(
            f"{shards.where(sample)}: its `{name}` is {found!r}; it has to be a caption or a list of them"
        )
    texts = [text.strip() for text in texts if text.strip()]
    return texts if seed == ALL or not texts else [texts[mix_int(seed, 1) % len(texts)]]


def negative_field(record: dict[str, Any]) -> tuple[str, Any]:
    """Name and value of the record's field of negatives, the first of ``FIELDS`` that it has; or None for a value."""
    lower = {name.lower(): name for name in record}
    name = next((lower[name] for name in FIELDS if name in lower), FIELDS[0])
    return name, record.get(name)


def swapped(shards: ShardSet, sample: int, seed: int, captions: tuple[str, ...]) -> list[str]:
    """A false version of each caption, drawn by ``seed`` (or ``ALL`` of them); none of one that no rule fits."""
    made = []
    for caption in captions:
        versions = false_versions(caption)
        made += versions if seed == ALL or not versions else [versions[mix_int(seed, 2) % len(versions)]]
    return made


def false_versions(caption: str) -> list[str]:
    """What the rules make of a caption, in a fixed order, without repetition.

    Example:
        >>> false_versions("a black dog and a white cat")[-2:]
        ['a white dog and a black cat', 'a black cat and a white dog']
    """
    versions = []
    for match in _WORD.finditer(caption):
        word = match.group()
        for other in _KIND_OF.get(word.lower(), ()):
            if other != word.lower():
                other = other.capitalize() if word[0].isupper() else other
                before = caption[: match.start()]
                if article := _A_BEFORE.search(before):
                    before = f"{before[: article.start()]}{_agreeing(article[1], other)} "
                versions.append(before + other + caption[match.end() :])
    for match in _TWO_THINGS.finditer(caption):
        one, its, thing, joint, two, theirs, other = match.groups()
        swaps = []
        if its.strip() and theirs.strip() and its.lower() != theirs.lower():
            swaps.append((theirs + thing, its + other))
        alike = _alike(one, two) and bool(_MANY.fullmatch(thing)) == bool(_MANY.fullmatch(other))
        # "a dog and a cat" is the same as "a cat and a dog"
        if alike and thing.lower() != other.lower() and (its != theirs or joint.lower() not in _EITHER_WAY):
            swaps.append((its + other, theirs + thing))
        for first, second in swaps:
            said = f"{_agreeing(one, first)} {first} {joint} {_agreeing(two, second)} {second}"
            versions.append(caption[: match.start()] + said + caption[match.end() :])
    return [v for v in dict.fromkeys(versions) if v.lower() != caption.lower()]


def _agreeing(article: str, word: str) -> str:
    """``article`` as it stands before ``word``, if it is a or an."""
    if article.lower() not in ("a", "an"):
        return article
    return f"{article[0]}n" if _AN.match(word) else article[0]


def _alike(one: str, other: str) -> bool:
    """Whether two articles are the same; a and an are."""
    return one.lower() == other.lower() or {one.lower(), other.lower()} == {"a", "an"}


_EITHER_WAY = ("and", "with", "next to", "beside", "near")
