"""The user's cache folder, and files that are either whole or absent."""

from __future__ import annotations

import os
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

DAMAGED_NPZ = (
    *(OSError, EOFError, MemoryError, zipfile.BadZipFile, zlib.error, struct.error, SyntaxError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
)
"""What numpy and zipfile raise for a file of arrays that is cut short or has a wrong byte somewhere."""


def cache_dir() -> Path:
    """``$CLIPKIT_CACHE``, or ``~/.cache/clipkit``. Everything in it can be deleted and is made again."""
    return Path(os.environ.get("CLIPKIT_CACHE") or Path.home() / ".cache" / "clipkit")


@contextmanager
def atomic_write(path: Path, durable: bool = True) -> Iterator[IO[bytes]]:
    """A binary file that appears at ``path`` only when the block has ended without an error.

    Written under a temporary name in the same folder, flushed to the disk, then renamed over ``path``: a reader sees
    the old file or the new one, never half of one, whatever kills the writer.

    Args:
        path: where it appears.
        durable: wait for the disk, so that a power failure leaves no half either. Without it, whoever reads the file
            has to notice a damaged one and make it again; it is much faster for many small files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable; does nothing where folders cannot be opened (Windows)."""
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
