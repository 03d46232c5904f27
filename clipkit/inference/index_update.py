"""An index brought up to date with its folder: only what is new or changed is encoded.

A file that has kept its size and the time of its last change is taken for unchanged; another one is read, and encoded
only if its content is not known. Encodings are kept beside the index as they are made, so that a killed update goes on
where it was; the old index stays as it is until the new one is whole.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner
from clipkit.inference.files import PictureFile, embed_files, find_pictures
from clipkit.inference.index import Index, Progress
from clipkit.inference.index_files import HEADER, Item, exclusive, model_fingerprint, write_index
from clipkit.training.locked import EncodingStore

_PART = 1024  # pictures that a kill can cost
_FRESH = 2_000_000_000  # ns: a file changed so shortly before it was read may change again and keep its time
_PENDING = "pending-"
_TILE = 65_536  # rows written at a time


class Changes(NamedTuple):
    """What an update found, in numbers of pictures."""

    added: int
    changed: int
    removed: int
    kept: int


def update_index(path: Path, model: Aligner, folder: Path, progress: Progress | None = None) -> tuple[Index, Changes]:
    """Make the index at ``path`` that of ``folder`` as it is now.

    Returns:
        The index, with what could not be read in ``skipped``, and what was changed.

    Raises:
        ClipkitError: no such folder, no readable picture in it, an index of another model, another process that
            writes it, or a disk that is full.
    """
    folder = folder.absolute()  # found again from anywhere
    paths = find_pictures(folder)
    with exclusive(path):
        old = Index.open(path, model) if (path / HEADER).is_file() else None
        before = {item.key: row for row, item in enumerate(old.items)} if old else {}
        row_of = {item.content: row for row, item in enumerate(old.items) if item.content} if old else {}
        store = EncodingStore(path / f"{_PENDING}{model_fingerprint(model)}")
        store.refresh()
        now = time.time_ns()
        found: dict[str, Item] = {}
        doubtful: list[Path] = []
        for file in paths:
            key = str(file.relative_to(folder))
            known = old.items[before[key]] if old and key in before else None
            if known and _is_same(known, file):
                found[key] = known
            else:
                doubtful.append(file)
        skipped: list[str] = []
        is_known = lambda content: content in row_of or bytes.fromhex(content) in store  # noqa: E731
        for done, read in enumerate(_kept(embed_files(model, doubtful, is_known), store), 1):
            key = str(read.path.relative_to(folder))
            if read.error is not None:
                skipped.append(read.error)
            else:  # a fresh file is looked at again the next time
                mtime = read.mtime if read.mtime < now - _FRESH else -1
                found[key] = Item(str(read.path), key, "", -1, read.size, read.content, mtime)
            if progress is not None:
                progress("indexing pictures", done, len(doubtful))
        store.refresh()
        items = [found[key] for file in paths if (key := str(file.relative_to(folder))) in found]
        if not items:
            raise ClipkitError(f"{folder}: none of {len(paths)} pictures can be read ({skipped[0]})")
        contents = {item.key: item.content for item in old.items} if old else {}
        changes = Changes(
            added=sum(item.key not in contents for item in items),
            changed=sum(contents.get(item.key, item.content) != item.content for item in items),
            removed=sum(key not in found for key in contents),
            kept=sum(contents.get(item.key) == item.content for item in items),
        )
        if old is None or items != old.items:
            embeddings = old.embeddings if old else np.zeros((0, model.embed_dim), dtype=np.float32)
            write_index(path, model, items, lambda file: _save_rows(file, items, row_of, embeddings, store))
        for left in path.glob(f"{_PENDING}*"):
            shutil.rmtree(left, ignore_errors=True)
    index = Index.open(path, model)
    index.skipped = skipped
    return index, changes


def _is_same(known: Item, file: Path) -> bool:
    """Whether ``file`` is, as far as can be told without reading it, what is ``known`` of it."""
    try:
        stat = file.stat()
    except OSError:
        return False
    return known.path == str(file) and (known.size, known.mtime) == (stat.st_size, stat.st_mtime_ns)


def _kept(files: Iterator[PictureFile], store: EncodingStore) -> Iterator[PictureFile]:
    """``files``, their rows added to the store, a part at a time, before the last file of the part is passed on."""
    keys: list[bytes] = []
    rows: list[NDArray[np.float32]] = []

    def flush() -> None:
        if keys:
            store.add(keys, np.stack(rows))
            keys.clear()
            rows.clear()

    for file in files:
        if file.row is not None:
            keys.append(bytes.fromhex(file.content))
            rows.append(file.row)
            if len(keys) >= _PART:
                flush()
        yield file
    flush()


def _save_rows(
    file: IO[bytes], items: list[Item], row_of: dict[str, int], old: NDArray[np.float32], store: EncodingStore
) -> None:
    """The .npy file of all items' embeddings, a stretch at a time."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(items), old.shape[1])}
    np.lib.format.write_array_header_1_0(file, header)
    for start in range(0, len(items), _TILE):
        part = items[start : start + _TILE]
        rows = np.empty((len(part), old.shape[1]), dtype="<f4")
        for place, item in enumerate(part):
            known = row_of.get(item.content)
            rows[place] = old[known] if known is not None else store[bytes.fromhex(item.content)]
        file.write(rows.tobytes())
