"""The bytes of samples, from shards on a disk or behind a URL."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.pairs.chunks import Chunk, fetch_chunks, read_chunk
from clipkit.pairs.index import ShardIndex
from clipkit.pairs.order import CHUNK
from clipkit.pairs.remote import Remote

_OPEN_FILES = 256
_SPREAD = 4  # a chunk whose bytes lie so many times further apart than they are is read sample by sample


class ShardFiles:
    """Reads stretches of shards: local files are kept open, of remote ones whole chunks are kept on the disk."""

    def __init__(self) -> None:
        self._files: dict[str, int] = {}
        self._chunks: dict[str, NDArray[np.int64]] = {}
        self._pid = os.getpid()

    def read(self, shard: ShardIndex, at: int, field: int) -> bytes:
        """Picture (0), json (1) or txt (2) of the shard's sample ``at``; empty if it has none.

        Raises:
            ClipkitError: the shard is shorter than its index says.
            UnreachableError: it is remote and does not answer.
        """
        offset, size = (int(n) for n in shard.spans[at, field])
        if not size:
            return b""
        if isinstance(shard.path, Remote):
            return read_chunk(self._chunk(shard, shard.path, at), offset, size)
        data = os.pread(self._open(str(shard.path)), size, offset)
        if len(data) != size:
            raise ClipkitError(f"{shard.path}: the shard is shorter than its index says; was it changed?")
        return data

    def fetch(self, samples: Iterable[tuple[ShardIndex, int]]) -> None:
        """Fetch what ``samples`` need of remote shards, side by side."""
        fetch_chunks(self._chunk(s, s.path, at) for s, at in samples if isinstance(s.path, Remote))

    def _chunk(self, shard: ShardIndex, file: Remote, at: int) -> Chunk:
        if file.url not in self._chunks:
            self._chunks[file.url] = _chunk_bounds(shard.spans)
        start, stop = (int(n) for n in self._chunks[file.url][at])
        return Chunk(file, start, stop)

    def _open(self, path: str) -> int:
        if self._pid != os.getpid():  # a forked worker must not share file positions, nor close its parent's files
            self._files, self._pid = {}, os.getpid()
        if path not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path] = os.open(path, os.O_RDONLY)
        return self._files[path]

    def close(self) -> None:
        """Close the files; reading opens them again."""
        files, self._files = self._files, {}
        if self._pid == os.getpid():
            for fd in files.values():
                os.close(fd)

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {"_files": {}, "_chunks": {}, "_pid": -1}


def _chunk_bounds(spans: NDArray[np.int64]) -> NDArray[np.int64]:
    """First and last byte, int64 (n, 2), of what is read at once for each sample: those of its chunk in the order."""
    begins = np.where(spans[..., 1] > 0, spans[..., 0], np.iinfo(np.int64).max).min(axis=1)
    ends = spans.sum(axis=2).max(axis=1)
    bounds = np.stack([begins, ends], axis=1)
    for first in range(0, len(spans), CHUNK):
        rows = slice(first, first + CHUNK)
        start, stop = begins[rows].min(), ends[rows].max()
        if stop - start <= _SPREAD * spans[rows, :, 1].sum():
            bounds[rows] = start, stop
    return bounds
