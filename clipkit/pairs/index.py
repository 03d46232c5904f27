"""The index of a shard: which samples it holds, and where their bytes lie.

Built by reading the tar's headers only; kept beside the shard, or in the cache when its folder cannot be written to.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from clipkit.cache import DAMAGED_NPZ, atomic_write, cache_dir
from clipkit.errors import ClipkitError
from clipkit.pairs.remote import Remote, read_whole
from clipkit.pairs.tar import Damage, read_members, scan_members

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif", "jpe", "avif")
MAX_PIXELS = 178_956_970  # PIL's own bound: a larger picture is refused as a decompression bomb
INDEX_FORMAT = 3
INDEX_SUFFIX = ".index.npz"
RECORDS = ("json", "txt", "cls")  # what a sample holds beside its picture
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # how gzip, bzip2, xz and zstd begin
_NAMED = 6  # members of a sample that are told by name
_REMOTE_AHEAD = 1 << 20  # a request takes as long as the reading of so many bytes
_REMOTE_STRETCH = 1 << 23


@dataclass(frozen=True)
class ShardIndex:
    """Where each sample of one tar lies.

    Attributes:
        spans: int64 (n, 4, 2): offset and size of picture, json, txt and cls; a size of 0 means that there is none.
        classes: names of the classes whose numbers the cls are, or nothing (see ``clipkit.pairs.classes``).
    """

    path: Path | Remote
    keys: list[str]
    extensions: list[str]
    spans: np.ndarray
    problems: list[str]
    fingerprint: str
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.keys)


def build_index(path: Path | Remote) -> ShardIndex:
    """Index of one tar, from its headers."""
    if (path.size if isinstance(path, Remote) else path.stat().st_size) == 0:
        raise ClipkitError(f"{path}: an empty file, not a tar shard; make it again or leave it out")
    if isinstance(path, Remote):
        members, damages = scan_members(path.read, path.size, _REMOTE_AHEAD, _REMOTE_STRETCH)
    else:
        try:
            members, damages = read_members(path)
        except OSError as error:
            raise ClipkitError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not members and damages:
        if _head(path).startswith(_COMPRESSED):
            raise compressed_tar(path)
        raise ClipkitError(f"{path}: not a tar file (no tar header found); shards are plain .tar files")
    problems = [_damage(d) for d in damages]
    samples: dict[str, dict[str, int]] = {}  # key -> extension -> which member
    last, fields = None, {}
    for at, name in enumerate(members.names):
        key, dot, extension = name.partition(".")
        if "/" in name:
            folder, _, base = name.rpartition("/")
            stem, dot, extension = base.partition(".")
            key = f"{folder}/{stem}" if folder and folder != "." else stem
            dot = dot if stem else ""
        if not dot or not key or not extension:
            continue
        if key != last:
            known = samples.get(key)
            fields = samples[key] = {} if known is None else known
            if known is not None:
                problems.append(f"members of {key!r} are not adjacent")
            last = key
        extension = extension.lower()
        if extension in fields:
            problems.append(f"{name!r} occurs twice; the first is used")
            continue
        fields[extension] = at
    keys: list[str] = []
    extensions: list[str] = []
    places: list[int] = []  # of picture, json, txt and cls among the members; the last place stands for none
    none = len(members)
    only_pictures = not any(name in fields for fields in samples.values() for name in RECORDS)
    for key, fields in samples.items():
        extension = "jpg" if "jpg" in fields else next((e for e in IMAGE_EXTENSIONS if e in fields), "")
        if not extension:
            problems.append(f"{key!r} has no picture ({_listed(fields)})")
        elif not only_pictures and not any(name in fields for name in RECORDS):
            problems.append(f"{key!r} has neither .json nor .txt nor .cls")
        else:
            keys.append(key)
            extensions.append(extension)
            places += (fields[extension], *(fields.get(name, none) for name in RECORDS))
    columns = np.array([[*members.offsets, 0], [*members.sizes, 0]], dtype=np.int64)
    array = np.ascontiguousarray(columns[:, places].T).reshape(len(keys), 1 + len(RECORDS), 2)
    digest = hashlib.blake2b(digest_size=16)
    digest.update("\n".join(keys).encode("utf-8", "surrogateescape"))
    digest.update(array.tobytes())
    return ShardIndex(path, keys, extensions, array, problems, digest.hexdigest())


def _listed(fields: dict[str, int]) -> str:
    names = ", ".join(list(fields)[:_NAMED])
    more = len(fields) - _NAMED
    return f"{names}, and {more:,} more: a key ends at the first dot of the name" if more > 0 else names


def compressed_tar(path: Path | Remote) -> ClipkitError:
    """What is said of a tar that is compressed."""
    return ClipkitError(
        f"{path}: a compressed tar, in which no sample can be looked up; unpack it (gunzip, unzstd) to a plain .tar"
    )


def _head(path: Path | Remote) -> bytes:
    if isinstance(path, Remote):
        return path.read(0, 8)
    with path.open("rb") as file:
        return file.read(8)


def _damage(damage: Damage) -> str:
    if damage.start == damage.stop:
        return f"{damage.reason}; copy or make it again if samples are missing"
    return f"bytes {damage.start}-{damage.stop} are damaged ({damage.reason}); samples there are lost"


def load_index(path: Path | Remote) -> ShardIndex:
    """Index of ``path`` from beside it or from the cache; built and kept when there is none or the tar changed."""
    if isinstance(path, Remote):
        stamp = [INDEX_FORMAT, path.size, path.tag]
        places = [_cached(path.url)]
    else:
        stat = path.stat()
        stamp = [INDEX_FORMAT, stat.st_size, stat.st_mtime_ns]
        places = [path.with_name(path.name + INDEX_SUFFIX), _cached(str(path.resolve()))]
    for place in places:
        stored = _read_index(path, place)
        if stored is not None and stored[1] == stamp:
            return stored[0]
    index = _beside(path) if isinstance(path, Remote) else None
    if index is None:
        index = build_index(path)
    header = {
        "stamp": stamp,
        "keys": index.keys,
        "extensions": index.extensions,
        "problems": index.problems,
        "fingerprint": index.fingerprint,
    }
    for place in places:
        try:
            with atomic_write(place, durable=False) as file:
                np.savez(file, header=json.dumps(header), spans=index.spans)
            break
        except OSError:
            continue
    return index


def _cached(name: str) -> Path:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16)
    return cache_dir() / "indexes" / f"{digest.hexdigest()}.npz"


def _beside(path: Remote) -> ShardIndex | None:
    """The index that was uploaded beside a remote tar, if it is that of a file of the same size."""
    data = read_whole(path.url + INDEX_SUFFIX)
    stored = _read_index(path, io.BytesIO(data)) if data else None
    return stored[0] if stored is not None and stored[1][:2] == [INDEX_FORMAT, path.size] else None


def _read_index(path: Path | Remote, place: Path | IO[bytes]) -> tuple[ShardIndex, list[Any]] | None:
    """A stored index with its stamp; None if there is none, or a damaged one: it is built again."""
    try:
        with np.load(place, allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            fields = (header["keys"], header["extensions"], stored["spans"], header["problems"], header["fingerprint"])
            return ShardIndex(path, *fields), header["stamp"]
    except DAMAGED_NPZ:
        return None
