"""What the rows of an index are: an Arrow table, of which ``Item`` is the view of one row.

Ten million rows are a few columns and not ten million objects: a saved table is mapped, and only the stretches and the
columns that are asked for are read.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.pairs import ShardSet
from clipkit.pairs.captions import whole_characters

SCHEMA = pa.schema(
    [
        ("path", pa.string()),
        ("key", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("content", pa.string()),
        ("mtime", pa.int64()),
        ("meta", pa.map_(pa.string(), pa.string())),
    ]
)
_STRETCH = 8192  # rows that are read together
_KEPT = 64  # stretches that are remembered


@dataclass(frozen=True)
class Item:
    """A picture of an index.

    Attributes:
        path: a file, or the shard that the picture is a member of.
        key: its name in the folder or in the shard.
        captions: what is said of it, in any number.
        offset: of a shard's member the place of its bytes; -1 for a file.
        size: of a member or of a file, in bytes; -1 if it is not known.
        content: hash of the file, 32 hex digits; empty if it is not known.
        mtime: time of the file's last change, in ns since 1970; -1 if it is not known.
        meta: what else is known (a label, a source), for filters.
    """

    path: str
    key: str
    captions: tuple[str, ...] = ()
    offset: int = -1
    size: int = -1
    content: str = ""
    mtime: int = -1
    meta: Mapping[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """The first caption, or an empty text."""
        return self.captions[0] if self.captions else ""

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


class Items(Sequence[Item]):
    """A sequence of ``Item`` over a table in memory or a parquet file; see ``of`` and ``open``.

    Any number of threads may read it.
    """

    def __init__(self, source: pa.Table | pq.ParquetFile) -> None:
        self._table = source if isinstance(source, pa.Table) else None
        self._file = source if self._table is None else None
        self._lock = threading.Lock()
        self._stretches: dict[int, pa.Table] = {}
        if self._file is not None:
            counts = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
            self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @classmethod
    def of(cls, items: Iterable[Item]) -> Items:
        """The table of ``items``, which are taken a stretch at a time; their captions and meta in whole characters.

        Raises:
            ClipkitError: a path or a key that is not UTF-8.
        """
        if isinstance(items, Items):
            return items
        batches, left = [], iter(items)
        while part := list(islice(left, _STRETCH)):
            rows = [asdict(item) for item in part]
            for row in rows:
                row["captions"] = [whole_characters(text) for text in row["captions"]]
                row["meta"] = [(whole_characters(name), whole_characters(text)) for name, text in row["meta"].items()]
            try:
                columns = [pa.array([row[f.name] for row in rows], f.type) for f in SCHEMA]
            except UnicodeEncodeError as error:
                raise ClipkitError(f"{error.object}: its name is not UTF-8; rename it") from None
            batches.append(pa.record_batch(columns, schema=SCHEMA))
        return cls(pa.Table.from_batches(batches, schema=SCHEMA))

    @classmethod
    def open(cls, path: Path) -> Items:
        """The table that ``save`` wrote at ``path``: mapped, read where it is needed.

        Raises:
            ValueError: another table.
        """
        file = pq.ParquetFile(path, memory_map=True)
        if not file.schema_arrow.equals(SCHEMA):
            raise ValueError("its table has other columns than this version's")
        return cls(file)

    def save(self, file: IO[bytes]) -> None:
        """Write the table as parquet, in stretches that can be read by themselves."""
        with pq.ParquetWriter(file, SCHEMA) as writer:
            for table in self._tables():
                if len(table):
                    writer.write_table(table, row_group_size=_STRETCH)

    def __len__(self) -> int:
        return int(self._starts[-1]) if self._table is None else len(self._table)

    @overload
    def __getitem__(self, row: int) -> Item: ...
    @overload
    def __getitem__(self, row: slice) -> Items: ...
    def __getitem__(self, row: int | slice) -> Item | Items:
        if isinstance(row, slice):
            chosen = range(len(self))[row]
            if chosen.step == 1 and self._table is not None:
                return Items(self._table.slice(chosen.start, len(chosen)))
            return Items.of(self[i] for i in chosen)
        row = range(len(self))[row]
        if self._table is not None:
            return _items(self._table.slice(row, 1))[0]
        which = int(np.searchsorted(self._starts, row, side="right")) - 1
        return _items(self._stretch(which).slice(row - int(self._starts[which]), 1))[0]

    def __iter__(self) -> Iterator[Item]:
        for table in self._tables():
            for start in range(0, len(table), _STRETCH):
                yield from _items(table.slice(start, _STRETCH))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Items):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of ``SCHEMA``, whole."""
        if self._table is not None:
            return self._table.column(name)
        assert self._file is not None
        with self._lock:
            return self._file.read(columns=[name]).column(0)

    def owners(self) -> NDArray[np.int64]:
        """int64 (M,): the row that each caption of the index belongs to, captions in the order of the rows."""
        counts = pc.list_value_length(self.column("captions")).to_numpy()
        return np.repeat(np.arange(len(self)), counts)

    def matching(self, where: Mapping[str, object]) -> NDArray[np.bool_]:
        """bool (N,): for which items all of ``where`` holds; see ``Index.search``.

        Raises:
            ClipkitError: a name that no item has, or a pattern that is none.
        """
        keep = np.ones(len(self), dtype=np.bool_)
        for name, value in where.items():
            own = "captions" if name == "caption" else name
            if own == "captions":
                found = [_any_matches(chunk, str(value)) for chunk in self.column(own).chunks]
            elif own in SCHEMA.names and own != "meta":
                found = [_matches(chunk, str(value)) for chunk in self.column(own).chunks]
            else:
                meta = self.column("meta").chunks
                names = {n for chunk in meta for n in pc.unique(chunk.keys).to_pylist()}
                if name not in names:
                    known = ", ".join(sorted(names | set(SCHEMA.names) - {"meta"}))
                    raise ClipkitError(f"no picture of the index has a {name!r}; there are {known}")
                found = [_matches(pc.map_lookup(chunk, pa.scalar(name), "first"), str(value)) for chunk in meta]
            keep &= np.concatenate(found) if found else keep
        return keep

    def _tables(self) -> Iterator[pa.Table]:
        """The whole, in order; of a file a stretch at a time."""
        if self._table is not None:
            yield self._table
        else:
            yield from (self._stretch(which) for which in range(len(self._starts) - 1))

    def _stretch(self, which: int) -> pa.Table:
        assert self._file is not None
        with self._lock:
            if which not in self._stretches:
                while len(self._stretches) >= _KEPT:
                    self._stretches.pop(next(iter(self._stretches)))
                self._stretches[which] = self._file.read_row_group(which)
            return self._stretches[which]


def shard_items(shards: ShardSet, samples: Iterable[int]) -> Iterator[Item]:
    """``samples`` of ``shards``: the files that they were made of where those are still there, else their members. What
    is no UTF-8 in a name is escaped, as a table cannot hold it: such a member is found, but cannot be read by it."""
    for i in samples:
        shard, at = shards.locate(i)
        offset, size = (int(n) for n in shard.spans[at, 0])
        record, captions = shards.read_record(i)
        meta = {k: str(v) for k, v in record.items() if isinstance(v, (str, int, float)) and k != "file"}
        file = shards.source_file(i)
        if file is not None and is_text(file):
            yield Item(str(file), escaped(shard.keys[at]), captions, meta=meta)
        else:
            where = shard.path.resolve() if isinstance(shard.path, Path) else shard.path
            yield Item(escaped(str(where)), escaped(shard.keys[at]), captions, offset, size, meta=meta)


def escaped(name: str) -> str:
    """A name as it can be written down: tars and folders hold any bytes."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_text(path: Path) -> bool:
    """Whether a path can be written down."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _items(table: pa.Table) -> list[Item]:
    rows: list[dict[str, Any]] = table.to_pylist()
    return [Item(**{**row, "captions": tuple(row["captions"]), "meta": dict(row["meta"])}) for row in rows]


def _matches(column: pa.Array, value: str) -> NDArray[np.bool_]:
    """bool (n,): which of ``column`` is ``value``, or fits it as a pattern."""
    text = column if pa.types.is_string(column.type) else column.cast(pa.string())
    is_value = pc.equal(text, value)
    if any(c in value for c in "*?["):
        try:
            is_value = pc.or_(is_value, pc.match_substring_regex(text, _regex(value)))
        except pa.ArrowInvalid:
            raise ClipkitError(f"{value!r} is no pattern: use *, ? and [abc]") from None
    return np.asarray(pc.fill_null(is_value, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _any_matches(column: pa.ListArray, value: str) -> NDArray[np.bool_]:
    """bool (n,): which lists of ``column`` hold a text that matches."""
    keep = np.zeros(len(column), dtype=np.bool_)
    keep[pc.list_parent_indices(column).to_numpy()[_matches(pc.list_flatten(column), value)]] = True
    return keep


def _regex(pattern: str) -> str:
    """A shell pattern as RE2 wants it: what ``fnmatch.translate`` gives uses what only Python's ``re`` knows."""
    parts = re.split(r"(\*|\?|\[!?\]?[^\]]*\])", pattern)
    known = {"*": ".*", "?": "."}
    for i, part in enumerate(parts):
        if part in known:
            parts[i] = known[part]
        elif i % 2:  # a class of characters
            inside = part[1:-1].replace("\\", r"\\").replace("[", r"\[")
            parts[i] = f"[^{inside[1:]}]" if inside.startswith("!") else f"[{inside}]"
        else:
            parts[i] = re.escape(part)
    return rf"^(?s:{''.join(parts)})\z"
