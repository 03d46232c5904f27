"""Shards of a table or folder, made on first use and kept."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clipkit.cache import cache_dir as default_cache_dir
from clipkit.errors import ClipkitError
from data_prep.records import Source
from data_prep.shards import DATASET_FORMAT
from data_prep.stage import stamp
from data_prep.workplace import is_whole


def source_fingerprint(source: Source, path: Path, options: dict[str, Any]) -> str:
    """Hash of all that the shards depend on: the records (the table's content or the folder's), the options,
    and the path, size and time of change of every picture."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([DATASET_FORMAT, str(path.resolve()), options], default=str, sort_keys=True).encode())
    if path.is_file():
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    for record in source.records:
        said = json.dumps([record.key, record.captions, record.meta, record.split, stamp(record)], default=str)
        digest.update(said.encode())
    for entry in source.skipped:
        digest.update(json.dumps([entry.file, entry.reason]).encode())
    return digest.hexdigest()


@contextmanager
def cache_entry(fingerprint: str, cache_dir: str | Path | None) -> Iterator[tuple[Path, Path | None]]:
    """The folder ``<cache>/shards/<fingerprint>`` and, when it is not there yet, the folder to make it in.

    What was made in the block replaces nothing and appears in one rename. Only one process makes it: others
    wait for it where files can be locked, and otherwise the first to finish wins.
    """
    root = Path(cache_dir) if cache_dir is not None else default_cache_dir()
    place = root / "shards" / fingerprint
    if is_whole(place):
        yield place, None
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ClipkitError(
            f"{place.parent}: cannot be made ({error.strerror}); set CLIPKIT_CACHE to a folder"
        ) from None
    with _lock(place.with_name(f".{fingerprint}.lock")) as alone:
        if is_whole(place):  # made while this process waited
            yield place, None
            return
        if alone:  # whatever lies here was left by a process that was killed
            for leftover in place.parent.glob(f".{fingerprint}.*.partial"):
                shutil.rmtree(leftover, ignore_errors=True)
        partial = place.with_name(f".{fingerprint}.{os.getpid()}.partial")
        try:
            yield place, partial
            try:
                os.rename(partial, place)
            except OSError:
                if not is_whole(place):
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold ``path`` locked; yields whether that was possible. The lock ends with the process, however it
    ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield False
        return
    with open(path, "wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a network file system without locks
            yield False
            return
        yield True


def options_key(*parts: Any) -> dict[str, Any]:
    """The options' values, for the fingerprint."""
    return {type(part).__name__: asdict(part) if hasattr(part, "__dataclass_fields__") else part for part in parts}
