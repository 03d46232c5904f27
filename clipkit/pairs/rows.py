"""Samples without pictures, held in memory: sentences, or who chose what.

They take the place of shards: a step's samples, their order, resuming and processes are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.pairs.index import ShardIndex
from clipkit.pairs.shards import ShardSet


class RowSet(ShardSet):
    """Rows of captions and of what else is known about them.

    Args:
        name: the file that they come from.
        captions: of each row; a row of several holds paraphrases of one another.
        records: of each row, or None.
    """

    def __init__(
        self, name: str, captions: Sequence[tuple[str, ...]], records: Sequence[dict[str, Any]] | None = None
    ) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for row, texts in enumerate(captions):
            said = "\x1f".join(texts) + (f"\x1e{sorted(records[row].items())}" if records is not None else "")
            digest.update(said.encode("utf-8", "surrogatepass") + b"\n")
        none = np.zeros((0, 3, 2), np.int64)
        super().__init__([ShardIndex(Path(name), [], [], none, [], digest.hexdigest())], name)
        self.sizes = [len(captions)]
        self._texts, self._records = captions, records

    def __len__(self) -> int:
        return self.sizes[0]

    def locate(self, i: int) -> tuple[ShardIndex, int]:
        """The one file, and the row."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self.shards[0], i

    def key(self, i: int) -> str:
        """The row's number."""
        return str(i)

    def where(self, i: int) -> str:
        """The file and the row, counted from 1."""
        return f"{self.name} row {i + 1}"

    def read_record(self, i: int) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What is known about the row, and its captions."""
        return (dict(self._records[i]) if self._records is not None else {}), self._texts[i]

    def read_picture(self, i: int) -> bytes:
        """A row has no picture."""
        raise ClipkitError(f"{self.where(i)}: rows of text have no pictures")

    def fetch(self, samples: Iterable[int]) -> None:
        """Everything is here."""
