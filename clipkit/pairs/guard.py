"""The false-negative guard: what is likely to belong together although its ids differ.

A picture must not be pushed away from a caption that says what its own says, nor from the caption of a copy of it. Both
get *groups*: a cell of the comparison whose ids differ and whose groups are equal in one column does not count.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

from clipkit.pairs.mask import SCORES_SUFFIX
from clipkit.pairs.remote import Remote, read_whole
from clipkit.pairs.shards import ShardSet

CAPTIONS = 5  # captions of a picture that are looked at
WIDTH = CAPTIONS + 1  # columns of groups: captions, then the picture that this one is a copy of
NONE = -1

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
    copies = _copies(shard.path) if shard.keys else None
    if copies is None:
        return NONE
    key = shard.keys[at]
    return _number("copy", str(shard.path).rpartition("/")[0], copies.get(key, key))


@cache
def _copies(shard: Path | Remote) -> dict[str, str] | None:
    """Key to the key of what it is a copy of, as data_prep found them for the samples of a shard; None if it did not
    look.

    Raises:
        UnreachableError: the server of a remote shard does not answer.
    """
    if isinstance(shard, Remote):
        data = read_whole(shard.url + SCORES_SUFFIX)
        place: object = None if data is None else io.BytesIO(data)
    else:
        beside = shard.with_name(shard.name + SCORES_SUFFIX)
        place = beside if beside.is_file() else None
    if place is None:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(place, columns=["key", "copy_of"])
        table = table.filter(table["copy_of"].is_valid())
    except (OSError, ValueError, KeyError, pa.ArrowException):
        return None  # damaged or another program's: the guard does without
    return dict(zip(table["key"].to_pylist(), table["copy_of"].to_pylist(), strict=True))


def _number(*parts: str) -> int:
    digest = hashlib.blake2b("\n".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
