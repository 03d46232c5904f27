"""An index brought up to date with its folder: only what is new or changed is encoded.

A file that has kept its size and the time of its last change is taken for unchanged; another one is read, and encoded
only if its content is not known. Encodings are kept beside the index as they are made, so that a killed update goes on
where it was; the old index stays as it is until the new one is whole.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner
from clipkit.inference.files import PictureFile, embed_files, find_pictures
from clipkit.inference.index import Index, Progress
from clipkit.inference.index_files import (
    HEADER,
    PENDING,
    check_model,
    exclusive,
    model_fingerprint,
    read_captions,
    read_index,
    read_wish,
    write_index,
)
from clipkit.inference.items import Item
from clipkit.training.locked import EncodingStore

_PART = 1024  # pictures that a kill can cost
_FRESH = 2_000_000_000  # ns: a file changed so shortly before it was read may change again and keep its time
_TILE = 65_536  # rows written at a time


class Changes(NamedTuple):
    """What an update found, in numbers of pictures."""

    added: int
    changed: int
    removed: int
    kept: int


def update_index(
    path: Path,
    model: Aligner,
    folder: Path,
    progress: Progress | None = None,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    backend: str | None = None,
    uri: str | None = None,
    rebuild: bool = False,
    wait: float = 0,
    say: Callable[[str], None] | None = None,
) -> tuple[Index, Changes]:
    """Make the index at ``path`` that of ``folder`` as it is now.

    Args:
        captions: of pictures by their path in ``folder``, to search by; those that are not named have none. By default
            the pictures keep what they have.
        backend, uri: as in ``Index.save``; by default those that the index has.
        rebuild: encode everything anew, whatever is there: an index of another model, or a damaged one. Captions and
            backend stay, where they can be read.
        wait: seconds to wait for another process that writes the index.
        say: is told that it waits.

    Returns:
        The index, with what could not be read in ``skipped``, and what was changed.

    Raises:
        ClipkitError: no such folder, no readable picture in it, an index of another model, another process that
            writes it, or a disk that is full.
    """
    folder = folder.absolute()  # found again from anywhere
    paths = find_pictures(folder)
    with exclusive(path, wait, say) as waited:
        if waited:
            paths = find_pictures(folder)  # as it is now
        old = _Old(path, model, rebuild)
        store = EncodingStore(path / PENDING.format(model_fingerprint(model)))
        store.refresh()
        found, skipped = _look(model, folder, paths, old, store, progress)
        store.refresh()
        items = [found[key] for file in paths if (key := str(file.relative_to(folder))) in found]
        if not items:
            raise ClipkitError(f"{folder}: none of {len(paths)} pictures can be read ({skipped[0]})")
        if captions is not None:
            items = [replace(item, captions=tuple(captions.get(item.key, ()))) for item in items]
        contents = {item.key: item.content for item in old.items}
        changes = Changes(
            added=sum(item.key not in contents for item in items),
            changed=sum(contents.get(item.key, item.content) != item.content for item in items),
            removed=sum(key not in found for key in contents),
            kept=sum(contents.get(item.key) == item.content for item in items),
        )
        with_captions = captions is not None or old.captioned
        wish = (backend, uri) if backend is not None else old.wish
        if rebuild or items != old.items or with_captions != (old.captions is not None) or wish != old.wish:
            save_captions = _caption_rows(model, items, old, progress) if with_captions else None
            write_index(
                path, model, items, lambda file: _save_rows(file, items, old, store), save_captions, *wish
            )  # fmt: skip
        for left in path.glob(PENDING.format("?" * 32)):
            shutil.rmtree(left, ignore_errors=True)
    index = Index.open(path, model)
    index.skipped = skipped if captions is not None else [*old.lost, *skipped]
    return index, changes


class _Old:
    """The index as it was before, or an empty one.

    If it is ``forgotten``, its embeddings are, and not what people gave: captions and backend, where they can be read.
    """

    def __init__(self, path: Path, model: Aligner, forgotten: bool) -> None:
        saved = read_index(path) if (path / HEADER).is_file() and not forgotten else None
        if saved is not None:
            check_model(saved, path, model)
        self.items: list[Item] = list(saved.items) if saved else []
        self.embeddings = saved.embeddings if saved else np.zeros((0, model.embed_dim), dtype=np.float32)
        self.captions = saved.captions if saved else None
        self.by_key = {item.key: item for item in self.items}
        self.row_of = {item.content: row for row, item in enumerate(self.items) if item.content}
        self.wish = read_wish(path)
        given = read_captions(path) if forgotten else {item.key: item.captions for item in self.items}
        self.captions_of: dict[str, tuple[str, ...]] = given or {}
        self.captioned = self.captions is not None if saved else bool(given)
        self.lost = [f"the captions of {path}, which cannot be read; give --captions again"] if given is None else []


def _look(
    model: Aligner, folder: Path, paths: list[Path], old: _Old, store: EncodingStore, progress: Progress | None
) -> tuple[dict[str, Item], list[str]]:
    """Every picture of ``paths`` that can be read, by its path in ``folder``, and why the others cannot.

    What is not known is encoded, and its encoding put into ``store``.
    """
    now = time.time_ns()
    found: dict[str, Item] = {}
    doubtful: list[Path] = []
    for file in paths:
        key = str(file.relative_to(folder))
        known = old.by_key.get(key)
        if known and _is_same(known, file):
            found[key] = known
        else:
            doubtful.append(file)
    skipped: list[str] = []
    is_known = lambda content: content in old.row_of or bytes.fromhex(content) in store  # noqa: E731
    for done, read in enumerate(_kept(embed_files(model, doubtful, is_known), store), 1):
        key = str(read.path.relative_to(folder))
        if read.error is not None:
            skipped.append(read.error)
        else:  # a fresh file is looked at again the next time
            mtime = read.mtime if read.mtime < now - _FRESH else -1
            captions = old.captions_of.get(key, ())
            found[key] = Item(str(read.path), key, captions, -1, read.size, read.content, mtime)
        if progress is not None:
            progress("indexing pictures", done, len(doubtful))
    return found, skipped


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


def _save_rows(file: IO[bytes], items: list[Item], old: _Old, store: EncodingStore) -> None:
    """The .npy file of all items' embeddings, a stretch at a time."""
    width = old.embeddings.shape[1]
    _start(file, len(items), width)
    for start in range(0, len(items), _TILE):
        part = items[start : start + _TILE]
        rows = np.empty((len(part), width), dtype="<f4")
        for place, item in enumerate(part):
            known = old.row_of.get(item.content)
            rows[place] = old.embeddings[known] if known is not None else store[bytes.fromhex(item.content)]
        file.write(rows.tobytes())


def _caption_rows(
    model: Aligner, items: list[Item], old: _Old, progress: Progress | None
) -> Callable[[IO[bytes]], None]:
    """What writes the .npy file of all captions' embeddings; those that are not known are encoded first, each once."""
    texts = [text for item in items for text in item.captions]
    before = [text for item in old.items for text in item.captions] if old.captions is not None else []
    known = {text: row for row, text in enumerate(before)}
    new = list(dict.fromkeys(text for text in texts if text not in known))
    encoded = np.zeros((0, model.embed_dim), dtype=np.float32)
    for start in range(0, len(new), _PART):
        encoded = np.concatenate([encoded, model.encode_text(new[start : start + _PART])])
        if progress is not None:
            progress("indexing captions", min(start + _PART, len(new)), len(new))
    place = {text: row for row, text in enumerate(new)}

    def save(file: IO[bytes]) -> None:
        _start(file, len(texts), model.embed_dim)
        for start in range(0, len(texts), _TILE):
            part = texts[start : start + _TILE]
            rows = [encoded[place[t]] if old.captions is None or t in place else old.captions[known[t]] for t in part]
            file.write(np.asarray(rows, dtype="<f4").tobytes())

    return save


def _start(file: IO[bytes], rows: int, width: int) -> None:
    """The beginning of a .npy file of float32 (rows, width)."""
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (rows, width)})
