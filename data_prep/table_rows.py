"""The rows of a table file as dictionaries, whatever its format."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from clipkit.errors import ClipkitError
from clipkit.lines import decode_text, unmarked_utf16
from clipkit.pairs.captions import parse_json
from data_prep.cells import columns_of_bytes, rows_with_cells
from data_prep.records import Skipped

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
SEPARATORS = (",", "\t", ";", "|")
Row = dict[str, Any]
_LONGEST = 1000  # lines of one record of a CSV; what has more is a quote that nobody closed
_OPEN = "unexpected end of data"  # what csv says of lines that end inside quotes
_LIKE_A_FILE = re.compile(r"https?://|\S*(\.[A-Za-z]\w{2,3})$")


def table_rows(
    path: Path, separator: str | None, encoding: str | None, image_columns: tuple[str, ...]
) -> tuple[list[str], Iterator[Row | Skipped]]:
    """Column names of the table at ``path`` and its rows; a row that cannot be read comes as ``Skipped``.

    A name that several columns of a CSV have comes as often, and rows have a list of their fields under it.

    Args:
        path: the table; its suffix says which format it has.
        separator: of a CSV, or None to find it out.
        encoding: of a text format, or None for UTF-8, or UTF-16 with a byte order mark.
        image_columns: names that one of the columns probably has, which tells separators apart.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_rows(path, image_columns)
    if suffix in (".jsonl", ".ndjson"):
        return _json_rows(path, encoding)
    if suffix in (".csv", ".tsv", ".txt"):
        return _csv_rows(path, separator or ("\t" if suffix == ".tsv" else None), encoding, image_columns)
    raise ClipkitError(
        f"{path}: not a table that can be read; expected a name that ends in {', '.join(TABLE_SUFFIXES)}"
    )


def repeated(columns: list[str]) -> str:
    """The first name that two columns have, or an empty string."""
    return next((name for place, name in enumerate(columns) if name and name in columns[:place]), "")


def _csv_rows(
    path: Path, separator: str | None, encoding: str | None, image_columns: tuple[str, ...]
) -> tuple[list[str], Iterator[Row | Skipped]]:
    text = read_text(path, encoding)
    if separator is None:
        separator = _sniff(text, image_columns)
    elif len(separator) != 1:
        raise ClipkitError(f"separator {separator!r}: expected a single character such as ',' or ';'")
    header = _header(text, separator)
    if any(map(_is_address, header)):  # a list of addresses, as Conceptual Captions is one: no names, only rows
        return (names := _names(header)), _csv_body(path.name, text, separator, names, has_header=False)
    return header if any(header) else [], _csv_body(path.name, text, separator, header)


def _is_address(field: str) -> bool:
    return re.fullmatch(r"https?://\S+", field, re.IGNORECASE) is not None


def _names(first: list[str]) -> list[str]:
    """Names for the columns of a table without a header, whose ``first`` row has an address."""
    url = next(place for place, field in enumerate(first) if _is_address(field))
    caption = next((place for place in range(len(first)) if place != url), None)
    known = {url: "url", caption: "caption"}
    return [known.get(place, f"column {place + 1}") for place in range(len(first))]


def _csv_body(
    name: str, text: str, separator: str, header: list[str], has_header: bool = True
) -> Iterator[Row | Skipped]:
    csv.field_size_limit(2**31 - 1)  # a quote that is never closed makes one field of many lines
    # newline="" leaves line ends alone, as csv asks for: a quoted caption may contain one.
    lines = _Lines(list(io.StringIO(text, newline="")))
    reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    if has_header:
        lines.allow(_LONGEST)
        next(reader, None)
    while True:
        first = lines.at
        lines.allow(_LONGEST)
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Skipped(f"{name} line {first + 1}", f"not a line of CSV ({error})", row=True)
            lines.at = first + 1
            continue
        if not any(field.strip() for field in fields):
            continue
        if reason := _stray_quote(lines.all[first : lines.at], separator, len(header), lines.at == len(lines.all)):
            yield Skipped(f"{name} line {first + 1}", reason, row=True)
            lines.at = first + 1  # without this, all lines to the next quote would be one caption
            continue
        if len(fields) > len(header):
            reason = f"{len(fields)} fields, the header has {len(header)}; a caption with {separator!r} needs quotes"
            yield Skipped(f"{name} line {first + 1}", reason, row=True)
            continue
        yield _row(header, fields)


def _row(header: list[str], fields: list[str]) -> Row:
    """A row by its columns; columns of one name become a list, so that several captions are all kept."""
    row: Row = dict(zip(header, fields, strict=False))
    if len(row) < len(fields):
        for name in {name for name in header if name and header.count(name) > 1}:
            row[name] = [field for column, field in zip(header, fields, strict=False) if column == name]
    return row


class _Lines:
    """The lines of a file for csv.reader, a few at a time; ``at`` is the next one and can be put back."""

    def __init__(self, lines: list[str]) -> None:
        self.all = lines
        self.at = self.stop = 0

    def allow(self, n: int) -> None:
        """Give ``n`` lines more, and then end as if the file ended there."""
        self.stop = min(self.at + n, len(self.all))

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self.at >= self.stop:
            raise StopIteration
        self.at += 1
        return self.all[self.at - 1]


def _stray_quote(lines: list[str], separator: str, n_columns: int, is_last: bool) -> str:
    """Why the first of the ``lines`` of one record has a quote that is none, or an empty string.

    A caption of several lines is one that csv's strict rules understand, and none of whose later lines looks like a row
    of its own.
    """
    if len(lines) == 1 and not is_last:
        return ""
    try:
        list(csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error as error:
        if _OPEN in str(error):
            return "its quote is never closed; close it, or double it if it belongs to the caption"
        if len(lines) > 1:
            return "its quote swallows the lines below; close it, or double it if it belongs to the caption"
    if len(lines) > 1 and _has_rows(lines, separator, n_columns):
        return "its quote swallows the rows below; close it, or double it if it belongs to the caption"
    return ""


def _has_rows(lines: list[str], separator: str, n_columns: int) -> bool:
    """Whether a line behind the first one, read alone, has all columns as the first has, and names of files (endings,
    addresses) where the first has them."""

    def alone(line: str, quoting: Literal[0, 3] = csv.QUOTE_MINIMAL) -> list[str]:
        try:
            return next(csv.reader([line], delimiter=separator, skipinitialspace=True, quoting=quoting), [])
        except csv.Error:
            return []

    def files(fields: list[str]) -> set[tuple[int, str]]:
        found = ((place, _LIKE_A_FILE.match(field.strip())) for place, field in enumerate(fields))
        return {(place, (match[1] or "").lower()) for place, match in found if match}

    first = [fields for fields in (alone(lines[0]), alone(lines[0], csv.QUOTE_NONE)) if len(fields) == n_columns]
    wanted = {file for fields in first for file in files(fields)}
    if not wanted and len(alone(lines[0])) != n_columns:
        return False
    rows = (fields for line in lines[1:] if len(fields := alone(line)) == n_columns)
    return any(not wanted or wanted & files(fields) for fields in rows)


def _header(text: str, separator: str) -> list[str]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        return [name.strip() for name in next(reader, [])]
    except csv.Error:
        return []


def _sniff(text: str, image_columns: tuple[str, ...]) -> str:
    """The separator whose reading of the first line gives a column for the pictures, or else the most
    columns."""

    def quality(separator: str) -> tuple[bool, int]:
        header = [name.lower() for name in _header(text, separator)]
        found = any(name.lower() in header for name in image_columns) or any(map(_is_address, header))
        return len(header) > 1 and found, len(header)

    return max(SEPARATORS, key=quality)  # the first of equals, so a comma when nothing tells


def _json_rows(path: Path, encoding: str | None) -> tuple[list[str], Iterator[Row | Skipped]]:
    rows: list[Row | Skipped] = []
    columns: dict[str, None] = {}
    # Not splitlines(): JSON strings may hold U+2028 and the like, which it takes for line ends.
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            rows.append(Skipped(f"{path.name} line {number}", f"not valid JSON ({error})", row=True))
            continue
        if not isinstance(row, dict):
            rows.append(Skipped(f"{path.name} line {number}", f"a {type(row).__name__}, expected an object", row=True))
            continue
        columns.update(dict.fromkeys(row))
        rows.append(row)
    if not columns and rows and isinstance(rows[0], Skipped):
        raise ClipkitError(f"{path}: no line of it is a JSON object ({rows[0].file}: {rows[0].reason})")
    return list(columns), iter(rows)


def _parquet_rows(path: Path, image_columns: tuple[str, ...]) -> tuple[list[str], Iterator[Row | Skipped]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ClipkitError(f"{path}: not a parquet file ({' '.join(str(error).split())})") from None

    if twice := repeated(schema.names):
        raise ClipkitError(f"{path}: two columns are called {twice!r}; give them different names")
    bytes_columns = columns_of_bytes(schema)
    pictures = [c for c in bytes_columns if c.strip().lower() in {name.strip().lower() for name in image_columns}]
    texts = [c for c in bytes_columns if c not in pictures]  # some programs write text as bytes without saying so

    def rows() -> Iterator[Row | Skipped]:
        for row in rows_with_cells(path, pictures):
            yield {**row, **{name: _decoded(row[name]) for name in texts}}

    return list(schema.names), rows()


def _decoded(value: Any) -> Any:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


def read_text(path: Path, encoding: str | None) -> str:
    """The text of a file, see ``decode_text``.

    Raises:
        ClipkitError: its bytes are no such text, or there is no such encoding.
    """
    data = path.read_bytes()
    if encoding is None and (found := unmarked_utf16(data)):
        raise ClipkitError(
            f"{path}: looks like UTF-16 without a byte order mark; give --encoding {found} to prepare or train, or "
            f"save it as UTF-8"
        )
    try:
        return decode_text(data, encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ClipkitError(
            f"{path}: line {line} is not {error.encoding}; save it as UTF-8, or give --encoding latin-1 to prepare "
            f"or train"
        ) from None
