"""Chunks of remote shards on the local disk: fetched once, in one read each, and shared by all processes here.

A batch draws from a window of chunks, and a window is used up before the next begins: so a chunk that is kept for
the length of a window is fetched once an epoch, and every request is for many samples.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from clipkit.cache import atomic_write, cache_dir
from clipkit.pairs.remote import Remote

BUDGET_GIB = 20.0  # kept on disk at most, and never more than half of what is free
_TOGETHER = 16  # requests under way at a time, in each process


@dataclass(frozen=True)
class Chunk:
    """Bytes [start, stop) of a remote shard."""

    shard: Remote
    start: int
    stop: int

    @property
    def path(self) -> Path:
        """Where it is kept."""
        digest = hashlib.blake2b(f"{self.shard.url} {self.shard.size} {self.shard.tag}".encode(), digest_size=12)
        return cache_dir() / "chunks" / digest.hexdigest() / f"{self.start}-{self.stop}"


def read_chunk(chunk: Chunk, offset: int, size: int) -> bytes:
    """Bytes [offset, offset + size) of the shard, all of them inside ``chunk``, which is fetched if it is not here.

    Raises:
        UnreachableError: they are not here and cannot be fetched.
    """
    kept = _kept(chunk, offset - chunk.start, size)
    if kept is None:
        fetch_chunks([chunk])
        kept = _kept(chunk, offset - chunk.start, size)
    # A full disk costs speed, not samples: then every sample is a request of its own.
    return chunk.shard.read(offset, size) if kept is None else kept


def fetch_chunks(chunks: Iterable[Chunk]) -> None:
    """Have all ``chunks`` here, those that are missing fetched side by side.

    Raises:
        UnreachableError: one of them cannot be fetched.
    """
    missing = [chunk for chunk in dict.fromkeys(chunks) if not chunk.path.is_file()]
    if not missing:
        return
    with ThreadPoolExecutor(min(_TOGETHER, len(missing))) as pool:
        list(pool.map(_fetch, missing))
    with suppress(OSError):
        sweep(cache_dir() / "chunks")


def sweep(folder: Path, disk_usage: Callable[[Path], tuple[int, int, int]] = shutil.disk_usage) -> None:
    """Delete the chunks that were not used for the longest time until the rest is within the budget."""
    kept = []
    for path in folder.glob("*/*"):
        with suppress(OSError):  # another process deletes as well
            stat = path.stat()
            kept.append((stat.st_mtime_ns, stat.st_size, path))
    held = sum(size for _, size, _ in kept)
    budget = min(float(os.environ.get("CLIPKIT_CHUNKS_GIB", BUDGET_GIB)) * 2**30, (held + disk_usage(folder)[2]) / 2)
    for _, size, path in sorted(kept):
        if held <= budget:
            return
        with suppress(OSError):
            path.unlink()
        held -= size


def _kept(chunk: Chunk, offset: int, size: int) -> bytes | None:
    try:
        with open(chunk.path, "rb", buffering=0) as file:
            os.utime(file.fileno())  # used just now: others are deleted first
            data = os.pread(file.fileno(), size, offset)
    except OSError:
        return None
    return data if len(data) == size else None


def _fetch(chunk: Chunk) -> None:
    with _alone(chunk.path.with_name(f".{chunk.start}.lock")):
        if chunk.path.is_file():  # another process has fetched it meanwhile
            return
        data = chunk.shard.read(chunk.start, chunk.stop - chunk.start)
        with suppress(OSError), atomic_write(chunk.path) as file:
            file.write(data)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold ``path`` locked where files can be locked; elsewhere two processes may fetch the same chunk."""
    try:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "wb")  # noqa: SIM115 - closed below
    except (ImportError, OSError):
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            with suppress(OSError):  # closing is not enough: a process that was forked meanwhile has it open too
                fcntl.flock(file, fcntl.LOCK_UN)
