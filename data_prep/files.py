"""Files of a preparation: whole or absent, and cheap to write by the thousand."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A binary file that appears at ``path`` only when the block has ended without an error.

    Unlike ``clipkit.cache.atomic_write`` it does not wait for the disk. A kill loses nothing by that; a power failure
    may leave the file shorter, so whoever trusts it later compares its size with its receipt's, and the disk is waited
    for once, before ``dataset.json`` says that all is there.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def wait_for_disk() -> None:
    """Return when everything that was written is on the disk; where that cannot be asked, at once."""
    if hasattr(os, "sync"):
        os.sync()
