"""Which picture goes into which split and shard: a pure function of what is known about all of them.

Copies of a picture, and pictures of one group, fall in one split. Where the source has splits of its own, these stay,
and what a training split shares with a held-out one is left out of the training split: a figure that is measured on
pictures which were trained on says nothing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from data_prep.copies import Components, copy_pairs, equal_pairs
from data_prep.records import SPLITS, Record, Skipped
from data_prep.stage import Facts

Copies = Literal["off", "exact", "near"]


@dataclass(frozen=True)
class SplitRule:
    """Random split of records that have none: shares of validation and test, and the seed.

    The split is a hash of the seed and the picture's bytes (of its group, if it has one), so a picture keeps its
    split when others come or go.
    """

    val: float = 0.0
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ClipkitError(
                f"--split-val {self.val}, --split-test {self.test}: expected shares from 0 to 1 that sum to less than 1"
            )

    def __call__(self, content: bytes) -> str:
        """Split of the picture whose bytes have the digest ``content``."""
        digest = hashlib.blake2b(f"{self.seed} ".encode() + content, digest_size=8).digest()
        at = int.from_bytes(digest, "big") / 2**64
        return "test" if at < self.test else "val" if at < self.test + self.val else "train"


@dataclass(frozen=True)
class PlanRule:
    """What the plan depends on besides the pictures: how they are split, how copies are found (``model`` names one in
    whose space pictures of at least ``threshold`` cosine similarity are copies), whether they are dropped, the field
    whose equal values stay together, and whether the order is random."""

    split: SplitRule
    find_copies: Copies = "near"
    drop_copies: bool = False
    group: str = "group"
    shuffle: bool = False
    model: str | None = None
    threshold: float = 0.95


@dataclass(frozen=True)
class Placed:
    """A record that becomes a sample: its row, its key, its captions, and the key of the picture it is a copy of."""

    row: int
    key: str
    captions: tuple[str, ...]
    copy_of: str | None


@dataclass(frozen=True)
class Plan:
    """The samples of each split in order, what is left out, and how many samples are copies of an earlier one."""

    splits: dict[str, list[Placed]]
    left_out: list[Skipped]
    copies: int


def make_plan(
    records: Sequence[Record],
    facts: Facts,
    rule: PlanRule,
    evaluation: Facts | None = None,
    more_pairs: Sequence[tuple[int, int]] = (),
) -> Plan:
    """Place every good record.

    Args:
        records: all of them, in the source's order.
        facts: a row per record.
        rule: splits, copies, groups, order.
        evaluation: pictures that must not be in training.
        more_pairs: copies that something else found (rows).
    """
    n = len(records)
    left_out = [
        Skipped(records[row].name, why, kind="mendable" if mendable else "bad")
        for row, (why, mendable) in sorted(facts.reasons.items())
    ]
    good = facts["good"].tolist()
    pairs = copy_pairs(facts, rule.find_copies == "near") if rule.find_copies != "off" else []
    sets = Components(n)
    sets.join([*pairs, *more_pairs])
    original = sets.firsts()
    splits = _splits(records, facts, rule, sets)
    reasons = _copies_across_splits(records, good, splits, original)
    for row in _seen_in(facts, evaluation, rule) if evaluation is not None else []:
        if splits[row] == "train":
            reasons.setdefault(row, ("an evaluation set holds this picture", "evaluation"))
    captions = {row: records[row].captions for row in range(n) if good[row] and row not in reasons}
    if rule.drop_copies:
        reasons.update(_dropped_copies(records, facts, captions, original))
    for row, (why, kind) in sorted(reasons.items()):
        left_out.append(Skipped(records[row].name, why, kind=kind))
    return _placed(records, captions, original, splits, reasons, left_out, rule)


def _splits(records: Sequence[Record], facts: Facts, rule: PlanRule, copies: Components) -> list[str]:
    """Split of every row: its own, else the one that its copies or its group have, else the rule's."""
    together = Components(len(records))
    together.join(enumerate(copies.firsts().tolist()))
    together.join(equal_pairs([_group(record, rule.group) for record in records]))
    sets = together.firsts().tolist()
    given: dict[int, str] = {}
    names: dict[int, bytes] = {}
    for row, first in enumerate(sets):
        if not facts["good"][row]:
            continue
        own = records[row].split
        if own is not None and SPLITS.index(own) >= SPLITS.index(given.get(first, "train")):
            given[first] = own
        group = _group(records[row], rule.group)
        # Groups sort before digests, so that the first of the names does not depend on which pictures are there.
        name = b"\0" + repr(group).encode() if group is not None else b"\1" + facts["content"][row].tobytes()
        names[first] = min(names.get(first, name), name)
    chosen = {
        first: given.get(first) or rule.split(name if name[:1] == b"\0" else name[1:]) for first, name in names.items()
    }
    return [records[row].split or chosen.get(first, "train") for row, first in enumerate(sets)]


def _group(record: Record, field: str) -> object | None:
    group = record.meta.get(field)
    return group if isinstance(group, str | int | float) else None


def _copies_across_splits(
    records: Sequence[Record], good: list[bool], splits: list[str], original: NDArray[np.int64]
) -> dict[int, tuple[str, str]]:
    """Rows that are copies of a picture in a split that counts more: test over val over train."""
    best: dict[int, int] = {}
    for row, first in enumerate(original.tolist()):
        if good[row] and SPLITS.index(splits[row]) > SPLITS.index(splits[best.setdefault(first, row)]):
            best[first] = row
    reasons = {}
    for row, first in enumerate(original.tolist()):
        if good[row] and splits[row] != splits[best[first]]:
            other = records[best[first]].name
            reasons[row] = (f"a copy of {other}, which is in {splits[best[first]]}", "copy")
    return reasons


def _seen_in(facts: Facts, evaluation: Facts, rule: PlanRule) -> list[int]:
    """Rows that are copies of a picture in the evaluation sets."""
    n = len(facts)
    both = Facts({name: np.concatenate([column, evaluation[name]]) for name, column in facts.columns.items()}, {})
    sets = Components(len(both))
    sets.join(copy_pairs(both, near=rule.find_copies == "near"))
    held_out = {sets.first(n + row) for row in evaluation["good"].nonzero()[0].tolist()}
    return [row for row in facts["good"].nonzero()[0].tolist() if sets.first(row) in held_out]


def _dropped_copies(
    records: Sequence[Record], facts: Facts, captions: dict[int, tuple[str, ...]], original: NDArray[np.int64]
) -> dict[int, tuple[str, str]]:
    """All of a set but the largest picture (the first of equals); captions of equal bytes are joined to it."""
    members: dict[int, list[int]] = {}
    for row in captions:
        members.setdefault(int(original[row]), []).append(row)
    pixels = facts["source_width"].astype(np.int64) * facts["source_height"]
    reasons = {}
    for rows in members.values():
        kept = max(rows, key=lambda row: (int(pixels[row]), -row))
        for row in rows:
            if row == kept:
                continue
            why = f"a copy of {records[kept].name}"
            if np.array_equal(facts["content"][row], facts["content"][kept]):
                captions[kept] = tuple(dict.fromkeys([*captions[kept], *captions[row]]))
                why += ", which has its captions now"
            reasons[row] = (why, "copy")
    return reasons


def _placed(
    records: Sequence[Record],
    captions: dict[int, tuple[str, ...]],
    original: NDArray[np.int64],
    splits: list[str],
    reasons: dict[int, tuple[str, str]],
    left_out: list[Skipped],
    rule: PlanRule,
) -> Plan:
    rows = [row for row in sorted(captions) if row not in reasons]
    used: dict[str, int] = {}
    keys = {row: unique_key(safe_key(records[row].key), used) for row in rows}
    if rule.shuffle:
        rows.sort(key=lambda row: hashlib.blake2b(f"{rule.split.seed} {keys[row]}".encode(), digest_size=8).digest())
    first_key: dict[int, str] = {}
    for row in sorted(rows):
        first_key.setdefault(int(original[row]), keys[row])
    placed: dict[str, list[Placed]] = {}
    for row in rows:
        first = first_key[int(original[row])]
        copy_of = first if first != keys[row] else None
        placed.setdefault(splits[row], []).append(Placed(row, keys[row], captions[row], copy_of))
    copies = sum(sample.copy_of is not None for samples in placed.values() for sample in samples)
    return Plan({name: placed[name] for name in SPLITS if name in placed}, left_out, copies)


def safe_key(key: str) -> str:
    """``key`` with everything replaced that ends a key (a dot), makes a folder (a slash) or is not plain
    ASCII."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", key).strip("_")[:100] or "sample"


def unique_key(key: str, used: dict[str, int]) -> str:
    """``key``, or with a number behind it when it is taken (also where a file system ignores case).

    ``used`` holds, in lower case, the keys that are taken and the last number that was put behind each.
    """
    n = used.get(key.lower(), 0) + 1
    candidate = key if n == 1 else f"{key}-{n}"
    while candidate.lower() in used:
        n += 1
        candidate = f"{key}-{n}"
    used[key.lower()] = n
    used.setdefault(candidate.lower(), 1)
    return candidate
