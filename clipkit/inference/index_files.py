"""An index on the disk: a header, embeddings (.npy), items (.parquet), and what a library searches with.

Files are never changed: new ones are written under new names, the header that names them is replaced last, and a lock
keeps a second writer out. So a reader, or a kill at any moment, finds the old index or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import filelock
import numpy as np
from numpy.typing import NDArray

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner
from clipkit.inference.approximate import build_search, choose, forget_search
from clipkit.inference.items import Item, Items
from clipkit.pairs.captions import parse_json

HEADER, LOCK = "index.json", ".lock"
FORMAT = 2
_BLOCK = 65_536  # rows checked at a time
_ASKED = 100  # captions that the search for pictures is measured with
_BAD = "holds NaN or infinity: leave the picture out, or check the model"
_OPENINGS = 5  # times that an index is tried which another process replaces meanwhile
_KEYS = {"format", "model", "fingerprint", "embeddings", "items"}  # of every header
_EMBEDDINGS = re.compile(r"embeddings-[0-9a-f]{12}\.npy")
_DATA = re.compile(
    rf"{_EMBEDDINGS.pattern}|captions-[0-9a-f]{{12}}\.npy|items-[0-9a-f]{{12}}\.parquet"
    r"|faiss-[0-9a-f]{12}(-captions)?\.index"
)
_UNFINISHED = re.compile(rf"\.({_DATA.pattern}|{re.escape(HEADER)})\.[a-z0-9_]{{8}}\.tmp")  # of ``atomic_write``
PENDING = "pending-{}"  # folder of an unfinished update's encodings, with the model's fingerprint in it
_BESIDE = re.compile(rf"{PENDING.format('[0-9a-f]{32}')}|milvus\.db")  # the latter is Milvus' own


@dataclass(frozen=True)
class Saved:
    """An index as it was read.

    Attributes:
        model: the name of the model that made it.
        fingerprint: of that model, see ``model_fingerprint``.
        embeddings: float32 (N, D), mapped.
        items: N of them.
        captions: float32 (M, D), mapped, of all items' captions in order; None if they are not searched.
        backend: what it is searched with, if that was asked for; None to go by its size.
        uri: of milvus, if that was asked for.
        searches: for ``pictures`` and ``captions``, what a library other than clipkit searches with.
    """

    model: str
    fingerprint: str
    embeddings: NDArray[np.float32]
    items: Items
    captions: NDArray[np.float32] | None
    backend: str | None
    uri: str | None
    searches: dict[str, dict[str, Any]]


def read_index(folder: Path) -> Saved:
    """The index in ``folder``.

    Raises:
        ClipkitError: there is none, or a damaged one.
    """
    for opening in range(_OPENINGS):
        header: dict[str, Any] = {}
        try:
            header = parse_json((folder / HEADER).read_bytes())
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']}, this version's is {FORMAT}")
            embeddings = np.load(folder / header["embeddings"], mmap_mode="r", allow_pickle=False)
            captions = header["captions"] and np.load(folder / header["captions"], mmap_mode="r", allow_pickle=False)
            items = Items.open(folder / header["items"])
            return Saved(
                header["model"], header["fingerprint"], embeddings, items, captions, header["backend"], header["uri"],
                header["searches"],
            )  # fmt: skip
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            if header and isinstance(error, FileNotFoundError) and opening < _OPENINGS - 1:
                continue  # replaced since its header was read
            raise ClipkitError(
                f"{folder}: no index there, or a damaged one ({error}); build it with clipkit index --rebuild"
            ) from None
    raise AssertionError("the last opening returns or raises")


def can_be_read(folder: Path) -> bool:
    """Whether there is an index in ``folder``, and a whole one."""
    try:
        read_index(folder)
    except ClipkitError:
        return False
    return True


def read_wish(folder: Path) -> tuple[str | None, str | None]:
    """What the index in ``folder`` is to be searched with, and milvus' uri, as far as its header can be read."""
    header = _header(folder)
    return header.get("backend"), header.get("uri")


def read_captions(folder: Path) -> dict[str, tuple[str, ...]] | None:
    """The captions of pictures by their keys, of an index that is damaged otherwise; None if it has lost them."""
    header = _header(folder)
    if not header.get("captions"):
        return {}
    try:
        return {item.key: item.captions for item in Items.open(folder / header["items"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_model(saved: Saved, folder: Path, model: Aligner) -> None:
    """Refuse another model than the one that made the index in ``folder``."""
    if model_fingerprint(model) != saved.fingerprint:
        raise ClipkitError(
            f"{folder} was made by {saved.model}, not by {model.name} as it is now; build it anew with clipkit index "
            f"--rebuild"
        )


@contextmanager
def exclusive(final: Path, wait: float = 0, say: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Nobody else writes the index at ``final`` meanwhile; tells whether somebody else did before.

    Args:
        wait: seconds to wait for another process that writes it.
        say: is told that it waits.

    Raises:
        ClipkitError: another process still does, or the folder is something else than an index.
    """
    if final.exists() and not (final.is_dir() and (not any(final.iterdir()) or _is_index(final))):
        raise ClipkitError(f"{final} exists and is no index, so it is not replaced; choose another path")
    try:
        final.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(final / LOCK)
        waited = _take(lock, wait, say)
        try:
            yield waited
        finally:
            lock.release()
    except filelock.Timeout:
        longer = f" for more than {wait:.0f} s" if wait else ""
        raise ClipkitError(
            f"{final}: another process is writing this index{longer}; wait for it, or choose another path"
        ) from None
    except OSError as error:
        raise ClipkitError(f"{final}: the index could not be written ({error.strerror or error}); free space") from None


def _take(lock: filelock.BaseFileLock, wait: float, say: Callable[[str], None] | None) -> bool:
    """Take the lock; whether another process had it."""
    try:
        lock.acquire(timeout=0)
        return False
    except filelock.Timeout:
        if not wait:
            raise
        if say is not None:
            say(f"another process is indexing these pictures; waiting for it (at most {wait / 60:.0f} minutes)")
        lock.acquire(timeout=wait)
        return True


SaveRows = Callable[[IO[bytes]], None]


def write_index(
    final: Path,
    model: Aligner,
    items: Iterable[Item],
    save_embeddings: SaveRows,
    save_captions: SaveRows | None = None,
    backend: str | None = None,
    uri: str | None = None,
) -> None:
    """Write the index to folder ``final``; a kill at any moment leaves the old one or the new one.

    The data go to files of new names, and the header that names them is replaced last.

    Args:
        save_embeddings: writes the .npy file of the pictures.
        save_captions: writes that of the items' captions; None if they are not searched.
        backend: what it is searched with; None for what suits its size.
        uri: of milvus.

    Raises:
        ClipkitError: an embedding that is not finite, or no such backend, or it is not installed or does not answer.
    """
    tag = os.urandom(6).hex()
    before = _header(final).get("searches", {})
    names = {"embeddings": f"embeddings-{tag}.npy", "items": f"items-{tag}.parquet", "captions": None}
    table = Items.of(items)
    name = choose(backend, len(table))
    searches: dict[str, dict[str, Any]] = {}
    try:
        with atomic_write(final / f"embeddings-{tag}.npy") as file:
            save_embeddings(file)
        bad = _not_finite(final / f"embeddings-{tag}.npy")
        if bad is not None:
            raise ClipkitError(f"the embedding of {table[bad].key} (row {bad}) {_BAD}")
        if save_captions:
            names["captions"] = f"captions-{tag}.npy"
            with atomic_write(final / f"captions-{tag}.npy") as file:
                save_captions(file)
            bad = _not_finite(final / f"captions-{tag}.npy")
            if bad is not None:
                raise ClipkitError(f"the embedding of a caption of {table[int(table.owners()[bad])].key} {_BAD}")
        with atomic_write(final / f"items-{tag}.parquet") as file:
            table.save(file)
        if name != "exact":
            searches = _build(name, final, tag, names["captions"], uri)
        header = {"format": FORMAT, "model": model.name, "fingerprint": model_fingerprint(model), **names,
                  "backend": backend, "uri": uri, "searches": searches}  # fmt: skip
        with atomic_write(final / HEADER) as file:
            file.write(json.dumps(header, indent=2).encode())
    except BaseException:
        if _header(final).get("embeddings") != names["embeddings"]:  # else it is the new index's, and stays
            for left in final.glob(f"*-{tag}*"):
                left.unlink()
        raise
    for old in final.iterdir():
        replaced = _DATA.fullmatch(old.name) and tag not in old.name
        if replaced or _UNFINISHED.fullmatch(old.name):  # the latter of a writer that was killed
            old.unlink()
    forget_search(final, before.values())


def _not_finite(path: Path) -> int | None:
    """The first row of a .npy file that holds NaN or infinity, or None."""
    rows = np.load(path, mmap_mode="r", allow_pickle=False)
    for start in range(0, len(rows), _BLOCK):
        whole = np.isfinite(rows[start : start + _BLOCK]).all(axis=1)
        if not whole.all():
            return start + int(whole.argmin())
    return None


def _build(backend: str, final: Path, tag: str, captions: str | None, uri: str | None) -> dict[str, dict[str, Any]]:
    """What a library searches with, for the pictures and the captions just written."""
    pictures = np.load(final / f"embeddings-{tag}.npy", mmap_mode="r", allow_pickle=False)
    none = np.zeros((0, pictures.shape[1]), dtype=np.float32)
    texts = np.load(final / captions, mmap_mode="r", allow_pickle=False) if captions else none
    some = np.sort(np.random.default_rng(0).permutation(len(texts))[:_ASKED])
    searches = {"pictures": build_search(backend, final, tag, pictures, texts[some], uri)}
    if len(texts):
        searches["captions"] = build_search(backend, final, f"{tag}-captions", texts, none, uri)
    return searches


def _header(folder: Path) -> dict[str, Any]:
    """The header as it is, empty if there is none that can be read."""
    try:
        header = parse_json((folder / HEADER).read_bytes())
    except (OSError, ValueError):
        return {}
    return header if isinstance(header, dict) else {}


def _is_index(folder: Path) -> bool:
    """Whether ``folder`` holds an index, a damaged one, or what a killed writer of a first one left.

    Other programs too have an ``index.json`` or a ``.lock``: a header counts by what is in it, or if it cannot be read
    by the embeddings beside it, and a lock if nothing but an index's own files are there.
    """
    names = {path.name for path in folder.iterdir()}
    if HEADER not in names:
        own = {name for name in names if any(p.fullmatch(name) for p in (_DATA, _UNFINISHED, _BESIDE))}
        return LOCK in names and names == own | {LOCK}
    try:
        header = parse_json((folder / HEADER).read_bytes())
    except (OSError, ValueError):
        return any(_EMBEDDINGS.fullmatch(name) for name in names)
    return isinstance(header, dict) and header.keys() >= _KEYS


def model_fingerprint(model: Aligner) -> str:
    """Hash of everything that decides the embeddings."""
    towers = model.model.towers.values()
    parts = [*(tower.fingerprint() for tower in towers), str(model.model.picture.to_dict())]
    for tower in towers:
        for name, tensor in sorted(tower.head.state_dict().items()):
            parts.append(name + hashlib.blake2b(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest())
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()
