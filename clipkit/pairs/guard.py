"""The false-negative guard: what is likely to belong together although its ids differ.

A picture must not be pushed away from a caption that says what its own says, nor from the caption of a copy of it. Both
get *groups*: a cell of the comparison whose ids differ and whose groups are equal in one column does not count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from clipkit.pairs.remote import Remote
from clipkit.pairs.shards import ShardSet

CAPTIONS = 5  # captions of a picture that are looked at
WIDTH = CAPTIONS + 1  # columns of groups: captions, then the picture that this one is a copy of
NONE = -1

_SCORES = ".scores.parquet"  # written by data_prep beside a shard
_APART = re.compile(r"[\W_]+")


def picture_groups(shards: ShardSet, sample: int, captions: Sequence[str]) -> list[int]:
    """Groups (WIDTH) of a picture with ``captions``."""
    alike = [caption_group(caption) for caption in captions[:CAPTIONS]]
    return [*alike, *[NONE] * (CAPTIONS - len(alike)), _copy_group(shards, sample)]


def caption_groups(shards: ShardSet, sample: int, caption: str, is_negative: bool = False) -> list[int]:
    """Groups (WIDTH) of a caption of ``sample``, or of a hard negative made for it."""
    return [*[caption_group(caption)] * CAPTIONS, NONE if is_negative else _copy_group(shards, sample)]


@lru_cache(maxsize=65_536)
def caption_group(caption: str) -> int:
    """A number (63 bits) that captions share if they differ by case, punctuation and spaces only."""
    return _number("caption", " ".join(_APART.split(caption.casefold())).strip() or caption)


def _copy_group(shards: ShardSet, sample: int) -> int:
    """The number of the picture that ``sample`` is a copy of, or its own; ``NONE`` where nobody looked for copies."""
    if not shards.shards:  # a pipe
        return NONE
    shard, at = shards.locate(sample)
    if isinstance(shard.path, Remote) or not shard.keys:
        return NONE
    copies = _copies(shard.path.parent)
    if not copies:
        return NONE
    key = shard.keys[at]
    return _number("copy", str(shard.path.parent), copies.get(key, key))


@lru_cache(maxsize=64)
def _copies(folder: Path) -> dict[str, str]:
    """Key to the key of what it is a copy of, as data_prep found them for the shards in ``folder``; empty if none."""
    found: dict[str, str] = {}
    tables = sorted(folder.glob(f"*{_SCORES}"))
    if tables:
        import pyarrow.parquet as pq
    for table in tables:
        try:
            columns = pq.read_table(table, columns=["key", "copy_of"])
        except (OSError, ValueError, KeyError):
            continue  # damaged or another program's: the guard does without
        keys, originals = columns["key"].to_pylist(), columns["copy_of"].to_pylist()
        found |= {key: original for key, original in zip(keys, originals, strict=True) if original is not None}
    return found


def _number(*parts: str) -> int:
    digest = hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
