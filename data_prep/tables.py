"""CSV, TSV, JSONL and parquet tables of pictures and captions.

Two columns matter: one names the picture (or holds its bytes, in parquet), one holds a caption or a list of
them. Rows of the same picture are one record, in the order of first appearance. Every other column goes to
``meta``.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError, did_you_mean
from data_prep.records import Record, Skipped, Source
from data_prep.table_rows import Row, table_rows

IMAGE_COLUMNS = ("filepath", "image", "image_path", "path", "file", "filename", "file_name", "img")
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "sentence")


def read_table(
    path: str | Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    image_root: str | Path | None = None,
    separator: str | None = None,
    encoding: str | None = None,
) -> Source:
    """Records of the table at ``path``.

    Args:
        path: a file that ends in ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet``.
        image_column: column of the pictures; found by its name (``IMAGE_COLUMNS``) if None.
        caption_column: column of the captions; found by its name (``CAPTION_COLUMNS``) if None.
        image_root: folder that relative picture paths start from; the table's own folder if None.
        separator: of a CSV; found from the first line (comma, tab or semicolon) if None.
        encoding: of a text table; UTF-8 (with or without a byte order mark, or UTF-16 with one) if None.

    Raises:
        ClipkitError: no such file, an empty table, a column that is not there, or none of the pictures is
            there.
    """
    path = Path(path)
    if not path.is_file():
        raise ClipkitError(f"{path}: no such file; check the path of the table")
    known = (image_column,) if image_column else IMAGE_COLUMNS
    columns, rows = table_rows(path, separator, encoding, known)
    if not columns:
        raise ClipkitError(f"{path} is empty; expected a header and a row per caption")
    image_column = _column(path, columns, image_column, IMAGE_COLUMNS, "pictures", "image")
    caption_column = _column(path, columns, caption_column, CAPTION_COLUMNS, "captions", "caption")
    root = Path(image_root) if image_root is not None else path.parent
    if not root.is_dir():
        raise ClipkitError(f"{root}: no such folder; check --image-root")
    return _records(path, rows, image_column, caption_column, root)


def _records(path: Path, rows: Iterator[Row | Skipped], image_column: str, caption_column: str, root: Path) -> Source:
    """Group the rows by picture; what cannot be used is listed with its reason."""
    pictures: dict[str, tuple[Path | bytes, dict[str, None], dict[str, Any]]] = {}
    looked_at: dict[str, tuple[str, Path | bytes | None, str]] = {}
    missing: dict[str, str] = {}  # picture -> reason, said once however many captions it has
    skipped: list[Skipped] = []
    n_rows = 0
    for row in rows:
        n_rows += 1
        if isinstance(row, Skipped):
            skipped.append(row)
            continue
        cell = row.get(image_column)
        if not isinstance(cell, str):
            identity, image, reason = _picture(cell, root)
        else:  # asking the disk once a picture, not once a caption
            identity, image, reason = looked_at.get(cell) or looked_at.setdefault(cell, _picture(cell, root))
        if reason:
            if not identity:
                skipped.append(Skipped(f"{path.name} row {n_rows}", reason, row=True))
            elif identity not in missing:
                missing[identity] = reason
                skipped.append(Skipped(identity, reason))
            continue
        assert image is not None
        captions = _captions(row.get(caption_column))
        if not captions:
            skipped.append(Skipped(identity, f"empty caption (row {n_rows} of {path.name})", row=True))
            continue
        if identity not in pictures:
            extra = {name: _plain(value) for name, value in row.items() if name not in (image_column, caption_column)}
            if caption_column == "label":
                extra["label"] = captions[0]
            file = str(cell) if isinstance(image, Path) else (_path_in(cell) or f"row {n_rows} of {path.name}")
            pictures[identity] = (
                image,
                {},
                {**{k: v for k, v in extra.items() if v is not None}, "file": file},
            )
        pictures[identity][1].update(dict.fromkeys(captions))
    if not n_rows:
        raise ClipkitError(f"{path} is empty: it has a header but no rows")
    if not pictures:
        first = skipped[0]
        hint = "check the paths, or pass --image-root FOLDER" if missing else "fill in the table"
        raise ClipkitError(f"{path}: none of its {n_rows:,} rows can be used ({first.file}: {first.reason}); {hint}")
    records = [
        Record(f"{i:08d}", image, tuple(captions), meta) for i, (image, captions, meta) in enumerate(pictures.values())
    ]
    return Source(str(path), records, skipped)


def _column(path: Path, columns: list[str], wanted: str | None, known: tuple[str, ...], what: str, flag: str) -> str:
    """Name of the column for ``what``: the one asked for, or the first known name that the table has."""
    listed = ", ".join(columns)
    if wanted is not None:
        if wanted in columns:
            return wanted
        hint = did_you_mean(wanted, columns) or f": pass --{flag}-column NAME with one of them"
        raise ClipkitError(f"{path} has no column {wanted!r}; its columns are {listed}{hint}")
    by_name = {column.strip().lower(): column for column in reversed(columns)}
    for name in known:
        if name in by_name:
            return by_name[name]
    raise ClipkitError(f"{path} has no column for the {what}; its columns are {listed}: pass --{flag}-column NAME")


def _picture(cell: Any, root: Path) -> tuple[str, Path | bytes | None, str]:
    """Identity, picture and, if it cannot be used, the reason. Equal identities are the same picture."""
    if isinstance(cell, dict):  # the way that Hugging Face stores pictures in parquet
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes | bytearray | memoryview):
        data = bytes(cell)
        return (
            hashlib.blake2b(data, digest_size=16).hexdigest(),
            data,
            "" if data else "the picture has no bytes",
        )
    name = cell.strip() if isinstance(cell, str) else ""
    if not name:
        return "", None, "no picture is named"
    if "://" in name:
        return name, None, "a URL; download the pictures first"
    path = os.path.normpath(root / name)
    if not os.path.isfile(path) and "\\" in name:  # a table written on Windows
        path = os.path.normpath(root / name.replace("\\", "/"))
    if not os.path.isfile(path):
        return path, None, "no such file"
    return path, Path(path), ""


def _path_in(cell: Any) -> str | None:
    return cell.get("path") if isinstance(cell, dict) else None


def _captions(cell: Any) -> list[str]:
    """Captions of a cell, with white space (newlines too) made single spaces; empty ones are dropped."""
    cells = cell if isinstance(cell, list | tuple) else [cell]
    cleaned = (" ".join(str(c).split()) for c in cells if c is not None and not _is_nan(c))
    return [c for c in cleaned if c]


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; None for what says nothing (empty, NaN, bytes)."""
    if (
        value is None
        or value == ""
        or isinstance(value, bytes)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
