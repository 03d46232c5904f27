"""The bytes of samples, from shards on a disk or behind a URL."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.pairs.chunks import Chunk, fetch_chunks, read_chunk
from clipkit.pairs.index import ShardIndex
from clipkit.pairs.order import CHUNK
from clipkit.pairs.remote import Remote

_OPEN_FILES = 256  # at most, and of what the process may open a quarter: torch's batches need some as well
OF_THE_PROCESS = {
    errno.EMFILE: "raise its limit with `ulimit -n 4096`, or take fewer and larger shards",
    errno.ENFILE: "the machine has too many files open; close other programs, or raise fs.file-max",
    errno.ENOMEM: "free some memory, or lower --workers or --batch-size",
}
"""Errors that are no fault of what is read, and what helps."""
_SPREAD = 4  # a chunk whose bytes lie so many times further apart than they are is read sample by sample


class ShardFiles:
    """Reads stretches of shards: local files are kept open, of remote ones whole chunks are kept on the disk."""

    def __init__(self) -> None:
        self._files: dict[str, io.FileIO] = {}
        self._chunks: dict[str, NDArray[np.int64]] = {}
        self._lock, self._pid = threading.Lock(), os.getpid()

    def read(self, shard: ShardIndex, at: int, field: int) -> bytes:
        """Picture (0), json (1), txt (2) or cls (3) of the shard's sample ``at``; empty if it has none.

        Raises:
            ClipkitError: the shard is shorter than its index says.
            UnreachableError: it is remote and does not answer.
        """
        offset, size = (int(n) for n in shard.spans[at, field])
        if not size:
            return b""
        if isinstance(shard.path, Remote):
            return read_chunk(self._chunk(shard, shard.path, at), offset, size)
        file = self._open(str(shard.path))  # held here: another thread may make room for another one meanwhile
        data = os.pread(file.fileno(), size, offset)
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

    def _open(self, path: str) -> io.FileIO:
        if self._pid != os.getpid():  # forked: another thread of the parent may hold the lock for ever
            self._lock, self._pid = threading.Lock(), os.getpid()
        with self._lock:
            file = self._files.get(path)
            if file is None:
                while len(self._files) >= _most_open():
                    self._files.pop(next(iter(self._files)))  # closed when the last thread that reads it lets go
                file = self._files[path] = self._new(path)
            return file

    def _new(self, path: str) -> io.FileIO:
        """``path``, opened; the files that are open already make room where the process may have no more."""
        while True:
            try:
                return io.FileIO(path)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                    raise
                self._files.pop(next(iter(self._files)))

    def close(self) -> None:
        """Close the files; reading opens them again."""
        with self._lock:
            self._files = {}

    def __reduce__(self) -> tuple[type[ShardFiles], tuple[()]]:
        return ShardFiles, ()


def _most_open() -> int:
    """Shards that are kept open at a time."""
    try:
        import resource
    except ImportError:  # Windows
        return _OPEN_FILES
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _OPEN_FILES if soft == resource.RLIM_INFINITY else max(1, min(_OPEN_FILES, soft // 4))


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
