"""An index on the disk: a header, embeddings (.npy) and items (.parquet).

Files are never changed: new ones are written under new names, the header that names them is replaced last, and a lock
keeps a second writer out. So a reader, or a kill at any moment, finds the old index or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner

HEADER, LOCK = "index.json", ".lock"
_OPENINGS = 5  # times that an index is tried which another process replaces meanwhile


@dataclass(frozen=True)
class Item:
    """A picture of an index.

    Attributes:
        path: a file, or the shard that the picture is a member of.
        key: its name in the folder or in the shard.
        caption: the first, if it has any.
        offset: of a shard's member the place of its bytes; -1 for a file.
        size: of a member or of a file, in bytes; -1 if it is not known.
        content: hash of the file, 32 hex digits; empty if it is not known.
        mtime: time of the file's last change, in ns since 1970; -1 if it is not known.
        meta: JSON object of what else is known (a label, a source), for filters; empty for nothing.
    """

    path: str
    key: str
    caption: str
    offset: int = -1
    size: int = -1
    content: str = ""
    mtime: int = -1
    meta: str = ""

    def read(self) -> bytes:
        """The encoded picture.

        Raises:
            ClipkitError: the file is gone.
        """
        try:
            with open(self.path, "rb") as file:
                if self.offset >= 0:
                    file.seek(self.offset)
                    return file.read(self.size)
                return file.read()
        except OSError as error:
            raise ClipkitError(
                f"{self.path}: cannot be read any more ({error.strerror}); build the index again"
            ) from None


def read_index(folder: Path) -> tuple[dict[str, Any], NDArray[np.float32], list[Item]]:
    """Header, embeddings (N, D), mapped, and items of the index in ``folder``.

    Raises:
        ClipkitError: there is none, or a damaged one.
    """
    for opening in range(_OPENINGS):
        header: dict[str, Any] = {}
        try:
            header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
            embeddings = np.load(folder / header["embeddings"], mmap_mode="r", allow_pickle=False)
            columns = pq.read_table(folder / header["items"]).to_pydict()
            items = [Item(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
            return {"model": header["model"], "fingerprint": header["fingerprint"]}, embeddings, items
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            if header and isinstance(error, FileNotFoundError) and opening < _OPENINGS - 1:
                continue  # replaced since its header was read
            raise ClipkitError(
                f"{folder}: no index there, or a damaged one ({error}); build it with clipkit index"
            ) from None
    raise AssertionError("the last opening returns or raises")


@contextmanager
def exclusive(final: Path) -> Iterator[None]:
    """Nobody else writes the index at ``final`` meanwhile.

    Raises:
        ClipkitError: another process does, or the folder is something else than an index.
    """
    if final.exists() and not (final.is_dir() and (not any(final.iterdir()) or _is_index(final))):
        raise ClipkitError(f"{final} exists and is no index, so it is not replaced; choose another path")
    try:
        final.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(final / LOCK, timeout=0):
            yield
    except filelock.Timeout:
        raise ClipkitError(
            f"{final}: another process is writing this index; wait for it, or choose another path"
        ) from None
    except OSError as error:
        raise ClipkitError(f"{final}: the index could not be written ({error.strerror or error}); free space") from None


def write_index(
    final: Path, model: Aligner, items: Iterable[Item], save_embeddings: Callable[[IO[bytes]], None]
) -> None:
    """Write the index to folder ``final``; a kill at any moment leaves the old one or the new one.

    The data go to files of new names, and the header that names them is replaced last.

    Args:
        save_embeddings: writes the .npy file.
    """
    tag = os.urandom(6).hex()
    embeddings, table = f"embeddings-{tag}.npy", f"items-{tag}.parquet"
    header = {"format": 1, "model": model.name, "fingerprint": model_fingerprint(model), "embeddings": embeddings,
              "items": table}  # fmt: skip
    rows = [asdict(item) for item in items]
    try:
        with atomic_write(final / embeddings) as file:
            save_embeddings(file)
        with atomic_write(final / table) as file:
            pq.write_table(pa.table({f.name: [row[f.name] for row in rows] for f in fields(Item)}), file)
        with atomic_write(final / HEADER) as file:
            file.write(json.dumps(header, indent=2).encode())
    except OSError:
        for name in (embeddings, table):
            (final / name).unlink(missing_ok=True)
        raise
    for old in final.iterdir():
        if old.name not in (embeddings, table) and old.name.startswith(("embeddings-", "items-")):
            old.unlink()


def _is_index(folder: Path) -> bool:
    """Whether ``folder`` holds an index, or what a killed writer of a first one left."""
    return (folder / HEADER).is_file() or (folder / LOCK).is_file()


def model_fingerprint(model: Aligner) -> str:
    """Hash of everything that decides the embeddings."""
    towers = model.model.towers.values()
    parts = [*(tower.fingerprint() for tower in towers), str(model.model.picture.to_dict())]
    for tower in towers:
        for name, tensor in sorted(tower.head.state_dict().items()):
            parts.append(name + hashlib.blake2b(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest())
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
