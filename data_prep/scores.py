"""The table beside a shard: a row of scores for each of its samples, which filters judge without touching the tar.

``000000.tar.scores.parquet`` has the columns of ``SCHEMA``. What a filter hides is in ``000000.tar.keep.npz``, which
``clipkit.pairs.open_shards`` reads: another threshold writes another mask and nothing else.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from clipkit.pairs.mask import SCORES_SUFFIX
from data_prep.language import language_of

if TYPE_CHECKING:
    import pyarrow as pa

SIDES = ("width", "height", "source_width", "source_height")
CLIP_MODEL = b"clip_model"  # in the table's metadata: which model gave the CLIP scores
# A character of Chinese or Japanese counts as a word: these are written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class Measured:
    """What a shard task knows about a sample."""

    key: str
    captions: tuple[str, ...]
    sides: tuple[int, ...]
    bytes: int
    copy_of: str | None
    label: Any


def schema() -> pa.Schema:
    """Columns of the table.

    ``width``, ``height`` (stored) and ``source_*`` (as the source has it) are pixels, ``bytes`` the stored picture's;
    ``shortest_words`` and ``longest_words`` are of its shortest and longest caption; ``language`` is null where nobody
    looked; ``copy_of`` names the sample that this one is a copy of; ``clip_score`` is the cosine similarity of the
    picture with the caption that fits it best, null where no model was asked.
    """
    import pyarrow as pa

    return pa.schema(
        [
            ("key", pa.string()),
            *((name, pa.int32()) for name in SIDES),
            ("bytes", pa.int64()),
            ("captions", pa.int32()),
            ("shortest_words", pa.int32()),
            ("longest_words", pa.int32()),
            ("language", pa.string()),
            ("copy_of", pa.string()),
            ("label", pa.string()),
            ("clip_score", pa.float32()),
        ]
    )


def words(caption: str) -> int:
    """Words of a caption; punctuation that stands alone is none."""
    return sum(any(c.isalnum() for c in word) for word in _WORD.findall(caption))


def write_scores(shard: Path, measured: Sequence[Measured], languages: bool) -> None:
    """The table of the shard at ``shard``."""
    import pyarrow as pa

    rows = [_row(sample, languages) for sample in measured]
    write_table(shard, pa.Table.from_pylist(rows, schema()))


def write_table(shard: Path, table: pa.Table) -> None:
    """Replace the table of the shard at ``shard``."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    with atomic_write(scores_path(shard)) as file:
        file.write(buffer.getvalue())


def read_scores(shard: Path) -> pa.Table:
    """The table of the shard at ``shard``.

    Raises:
        ClipkitError: there is none, or it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = scores_path(shard)
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise ClipkitError(f"{path}: no such table of scores; `clipkit prepare` shards to get one") from None
    except (pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        raise ClipkitError(f"{path}: not a table of scores ({said}); prepare the shards again") from None
    if not table.schema.equals(schema()):
        raise ClipkitError(f"{path}: not a table of scores (its columns are others); prepare the shards again")
    return table


def scores_path(shard: Path) -> Path:
    """Where the table of the shard at ``shard`` lies."""
    return shard.with_name(shard.name + SCORES_SUFFIX)


def _row(sample: Measured, languages: bool) -> dict[str, Any]:
    lengths = [words(caption) for caption in sample.captions]
    return {
        "key": _utf8(sample.key),
        **dict(zip(SIDES, sample.sides, strict=True)),
        "bytes": sample.bytes,
        "captions": len(sample.captions),
        "shortest_words": min(lengths, default=0),
        "longest_words": max(lengths, default=0),
        "language": language_of(sample.captions) if languages else None,
        "copy_of": None if sample.copy_of is None else _utf8(sample.copy_of),
        "label": None if sample.label is None else _utf8(str(sample.label)),
    }


def _utf8(text: str) -> str:
    """``text`` as parquet can hold it: bytes of a file name that are no UTF-8, and halves of characters, escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
