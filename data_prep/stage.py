"""The first shard task: read, check and encode the pictures of a piece of the source, once.

A piece leaves two files: ``000012.bin``, the bytes of its pictures one behind the other, and, written last,
``000012.npz``, what is known about each of them (``Facts``). A piece whose facts are there is done; only pictures that
may be there another time (a server did not answer) are read again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.cache import DAMAGED_NPZ
from clipkit.errors import ClipkitError
from clipkit.pairs.pillow import too_large
from data_prep.files import whole_file
from data_prep.images import Encoding, Picture, checked_picture
from data_prep.looks import TINY
from data_prep.records import MendableError, Record

PIECE = 64  # pictures of a piece: enough to be worth a task, few enough to lose little when one is killed
EXTENSIONS = ("jpg", "png", "webp")
_FETCHES = 16  # pictures that are fetched at a time, where reading means waiting for a server

_COLUMNS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "good": (np.bool_, ()),
    "offset": (np.int64, ()),
    "size": (np.int64, ()),
    "extension": (np.uint8, ()),
    "width": (np.int32, ()),
    "height": (np.int32, ()),
    "source_width": (np.int32, ()),
    "source_height": (np.int32, ()),
    "phash": (np.uint64, ()),
    "tiny": (np.uint8, (TINY * TINY * 3,)),
    "content": (np.uint8, (16,)),
}


@dataclass(frozen=True)
class Facts:
    """What is known about the pictures of a piece, or of all pieces.

    Attributes:
        columns: arrays with a row per record: ``good`` (bool), ``offset`` and ``size`` (int64) in the piece's file,
            ``extension`` (place in ``EXTENSIONS``), ``width``, ``height``, ``source_width``, ``source_height`` (int32,
            pixels), ``phash`` (uint64), ``tiny`` (uint8, 192), ``content`` (uint8, 16: digest of the source's bytes).
        reasons: row to (why it is not good, whether another run may mend it).
    """

    columns: dict[str, NDArray[Any]]
    reasons: dict[int, tuple[str, bool]]

    def __len__(self) -> int:
        return len(self.columns["good"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    @property
    def mendable(self) -> list[int]:
        """Rows that another run may mend."""
        return [row for row, (_, mendable) in self.reasons.items() if mendable]


@dataclass(frozen=True)
class StageTask:
    """One piece: its records, how its pictures are stored, and where it lies.

    ``inputs`` is a digest of all that the result depends on; ``mend`` reads again what may be there another time;
    without ``keep_bytes`` only the facts are wanted.
    """

    path: Path
    records: tuple[Record, ...]
    encoding: Encoding
    verify: bool
    with_look: bool
    keep_bytes: bool
    inputs: str
    mend: bool = False

    def at(self, folder: Path, mend: bool) -> StageTask:
        """The same piece, to lie in ``folder``."""
        return replace(self, path=folder / self.path, mend=mend)


def stage_tasks(
    records: Sequence[Record],
    folder: Path,
    encoding: Encoding,
    verify: bool,
    with_look: bool,
    keep_bytes: bool = True,
) -> list[StageTask]:
    """The pieces of ``records``, as tasks. Captions do not travel with them: they are not looked at here."""
    tasks = []
    for number, start in enumerate(range(0, len(records), PIECE)):
        slim = tuple(
            Record(r.key, r.image, (), {"file": r.meta["file"]} if "file" in r.meta else {})
            for r in records[start : start + PIECE]
        )
        said = json.dumps(
            [asdict(encoding), verify, with_look, keep_bytes, [[r.name, stamp(r)] for r in slim]], default=str
        )
        inputs = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        path = folder / f"{number:06d}"
        tasks.append(StageTask(path, slim, encoding, verify, with_look, keep_bytes, inputs))
    return tasks


def stamp(record: Record) -> Any:
    """What changes when the record's picture changes: the file's size and time of change, or the bytes."""
    image = record.image
    if isinstance(image, bytes):
        return hashlib.blake2b(image, digest_size=16).hexdigest()
    path = image if isinstance(image, Path) else getattr(image, "path", None)
    said = str(image.absolute()) if isinstance(image, Path) else repr(image)
    try:
        stat = path.stat() if path is not None else None
    except OSError:
        return said
    return [said, stat.st_size, stat.st_mtime_ns] if stat else said


def stage(task: StageTask) -> Facts:
    """Read, check and encode the pictures of ``task``; free if that was done before."""
    known = read_facts(task.path, task.inputs)
    if known is not None and not (task.mend and known.mendable):
        return known
    wanted = list(range(len(task.records))) if known is None else known.mendable
    old = known.columns if known is not None else _empty(len(task.records))
    columns = {name: column.copy() for name, column in old.items()}
    reasons = dict(known.reasons) if known is not None else {}
    # What is there already stays where it is, and what is mended comes behind it.
    kept = task.path.with_suffix(".bin").read_bytes() if known is not None else b""
    with whole_file(task.path.with_suffix(".bin")) as file:
        file.write(kept)
        at = len(kept)
        for row, outcome in zip(wanted, _outcomes([task.records[row] for row in wanted], task), strict=True):
            reasons.pop(row, None)
            if isinstance(outcome, ClipkitError):
                reasons[row] = (str(outcome), isinstance(outcome, MendableError))
                continue
            content, picture = outcome
            _fill(columns, row, content, picture, at)
            if task.keep_bytes:
                file.write(picture.data)
                at += len(picture.data)
    facts = Facts(columns, reasons)
    _write_facts(task.path, facts, task.inputs, at)
    return facts


def read_facts(path: Path, inputs: str) -> Facts | None:
    """Facts of the piece at ``path`` if they are whole and were made from ``inputs``, else None."""
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            header = json.loads(str(stored["header"]))
            if header["inputs"] != inputs or path.with_suffix(".bin").stat().st_size < header["bytes"]:
                return None
            columns = {name: stored[name] for name in _COLUMNS}
            reasons = {int(row): (why, mendable) for row, why, mendable in header["reasons"]}
    except DAMAGED_NPZ:  # a power failure leaves such files
        return None
    return Facts(columns, reasons)


def joined(pieces: Sequence[Facts]) -> Facts:
    """Facts of all pieces as one; offsets stay those in each piece's file."""
    columns = {
        name: np.concatenate([piece[name] for piece in pieces]) if pieces else empty
        for name, empty in _empty(0).items()
    }
    reasons: dict[int, tuple[str, bool]] = {}
    first = 0
    for piece in pieces:
        reasons.update({first + row: why for row, why in piece.reasons.items()})
        first += len(piece)
    return Facts(columns, reasons)


def _empty(n: int) -> dict[str, NDArray[Any]]:
    return {name: np.zeros((n, *shape), dtype) for name, (dtype, shape) in _COLUMNS.items()}


def _fill(columns: dict[str, NDArray[Any]], row: int, content: bytes, picture: Picture, at: int) -> None:
    columns["good"][row] = True
    columns["offset"][row], columns["size"][row] = at, len(picture.data)
    columns["extension"][row] = EXTENSIONS.index(picture.extension)
    columns["width"][row], columns["height"][row] = picture.size
    columns["source_width"][row], columns["source_height"][row] = picture.source_size
    columns["content"][row] = np.frombuffer(content, np.uint8)
    if picture.look is not None:
        columns["phash"][row] = picture.look.phash
        columns["tiny"][row] = np.frombuffer(picture.look.tiny, np.uint8)


def _outcomes(records: list[Record], task: StageTask) -> Iterator[tuple[bytes, Picture] | ClipkitError]:
    """Content digest and picture of each record, or what is wrong with it, in order."""
    if not any(getattr(record.image, "waits", False) for record in records):
        yield from (_outcome(record, task) for record in records)
        return
    with ThreadPoolExecutor(_FETCHES) as pool:
        yield from pool.map(lambda record: _outcome(record, task), records)


def _outcome(record: Record, task: StageTask) -> tuple[bytes, Picture] | ClipkitError:
    try:
        data = _bytes(record)
    except ClipkitError as error:
        return error
    except OSError as error:
        return ClipkitError(f"cannot be read ({error.strerror or error})")
    try:
        picture = checked_picture(data, task.encoding, task.verify, task.with_look)
    except ClipkitError as error:  # a server may say that it is busy where a picture should be
        return MendableError(str(error)) if getattr(record.image, "waits", False) else error
    return hashlib.blake2b(data, digest_size=16).digest(), picture


def _bytes(record: Record) -> bytes:
    if isinstance(record.image, bytes):
        return record.image
    if not isinstance(record.image, Path):
        return record.image()
    if record.image.exists() and not record.image.is_file():  # a pipe would keep us waiting for ever
        raise ClipkitError("not a regular file")
    if reason := too_large(record.image):
        raise ClipkitError(reason)
    return record.image.read_bytes()


def _write_facts(path: Path, facts: Facts, inputs: str, n_bytes: int) -> None:
    header = {
        "inputs": inputs,
        "bytes": n_bytes,
        "reasons": [[row, why, mendable] for row, (why, mendable) in sorted(facts.reasons.items())],
    }
    with whole_file(path.with_suffix(".npz")) as file:
        np.savez(file, header=json.dumps(header), **facts.columns)  # type: ignore[arg-type]
