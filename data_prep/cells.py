"""Pictures that lie in the rows of arrow and parquet files: they stay there and are read again when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipkit.errors import ClipkitError

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Cell:
    """The picture in one row of an arrow or parquet file: its bytes when called. Cells of one ``digest`` hold the same
    picture."""

    path: Path
    group: int
    row: int
    column: str
    digest: str

    def __call__(self) -> bytes:
        cell = _column(self.path, self.group, self.column)[self.row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if isinstance(data, bytes | bytearray | memoryview):
            return bytes(data)
        raise ClipkitError("the picture has no bytes")


def rows_with_cells(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows of an arrow or parquet file as dictionaries; bytes in one of ``columns`` become a ``Cell``, beside which a
    ``file`` says what the picture was called, if its row says so and has no such column of its own.

    Raises:
        ClipkitError: a damaged file, one without one of ``columns``, or a time before year 1 or after 9999.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            file = pq.ParquetFile(path)
            groups: Iterator[Any] = (file.read_row_group(n) for n in range(file.num_row_groups))
        else:
            groups = _arrow_batches(path)
        for number, group in enumerate(groups):
            if lacks := next((column for column in columns if column not in group.schema.names), None):
                named = ", ".join(group.schema.names)
                raise ClipkitError(f"{path}: no column {lacks!r}, unlike other files; its columns are {named}")
            others = group.drop_columns(list(columns))
            for row, values in enumerate(others.to_pylist() if others.num_columns else [{} for _ in range(len(group))]):
                for column in columns:
                    picture = group[column][row].as_py()
                    inside = picture.get("bytes") if isinstance(picture, dict) else picture
                    if isinstance(inside, bytes):
                        digest = hashlib.blake2b(inside, digest_size=16).hexdigest()
                        values[column] = Cell(path, number, row, column, digest)
                        if isinstance(picture, dict):
                            values.setdefault("file", picture.get("path"))
                    else:
                        values[column] = picture
                yield values
    except (pa.ArrowException, OSError) as error:
        raise ClipkitError(f"{path}: damaged ({' '.join(str(error).split())[:160]})") from None
    except OverflowError as error:
        raise ClipkitError(f"{path}: a time that cannot be read ({error}); mend it, or leave its column out") from None


def columns_of_bytes(schema: pa.Schema) -> list[str]:
    """Columns that hold bytes, or as Hugging Face stores a picture, a struct of ``bytes`` and ``path``."""
    import pyarrow as pa

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(field.name == "bytes" and holds(field.type) for field in kind)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    return [field.name for field in schema if holds(field.type)]


@lru_cache(maxsize=4)
def _column(path: Path, group: int, column: str) -> Any:
    """One column of one row group (parquet) or record batch (arrow)."""
    import pyarrow.parquet as pq

    if path.suffix.lower() == ".parquet":
        return pq.ParquetFile(path).read_row_group(group, columns=[column])[column].combine_chunks()
    for number, batch in enumerate(_arrow_batches(path)):
        if number == group:
            return batch[column]
    raise ClipkitError(f"{path} has changed: it has no record batch {group}")


def _arrow_batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        yield from pa.ipc.open_stream(source)
