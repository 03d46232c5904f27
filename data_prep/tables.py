"""CSV, TSV, JSONL and parquet tables of pictures and captions.

Two columns matter: one names the picture (or holds its bytes, in parquet), one holds a caption or a list of
them; several columns of captions may have one name in a CSV. Rows of the same picture (and split) are one record, in
the order of first appearance. Every other column goes to ``meta``. A list of addresses and captions needs no header.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError, did_you_mean
from data_prep.records import Record, Skipped, Source
from data_prep.table_rows import Row, table_rows
from data_prep.urls import FetchLimits, WebPicture

IMAGE_COLUMNS = (
    "filepath",
    "image",
    "image_path",
    "path",
    "file",
    "filename",
    "file_name",
    "img",
    "image_name",
    "url",
    "image_url",
    "img_url",
)
CAPTION_COLUMNS = ("caption", "captions", "text", "title", "sentence", "sentences", "comment", "raw", "alt_text")
SAID = ("raw", "caption", "text")  # where an object holds its caption
_SPLIT_WORDS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}


@dataclass(frozen=True)
class RowOptions:
    """How to make records of rows; see ``read_table``. ``split_column`` names the column of splits."""

    image_column: str | None = None
    caption_column: str | None = None
    split_column: str | None = None
    image_root: Path | None = None
    limits: FetchLimits = field(default_factory=FetchLimits)
    template: str = "a photo of a {}."
    captions_optional: bool = False


def read_table(
    path: str | Path,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_column: str | None = None,
    image_root: str | Path | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    limits: FetchLimits | None = None,
    captions_optional: bool = False,
) -> Source:
    """Records of the table at ``path``.

    Args:
        path: a file that ends in ``.csv``, ``.tsv``, ``.jsonl``, ``.ndjson`` or ``.parquet``, or a CSV in a ``.txt``.
        image_column: column of the pictures (files, http and https addresses, or bytes); found by its name
            (``IMAGE_COLUMNS``) if None.
        caption_column: column of the captions; found by its name (``CAPTION_COLUMNS``) if None.
        split_column: column that says train, val or test; none if None.
        image_root: folder that relative picture paths start from; the table's own folder, or ``images`` in it, if None.
        separator: of a CSV; found from the first line (comma, tab, semicolon or bar) if None.
        encoding: of a text table; UTF-8 (with or without a byte order mark, or UTF-16 with one) if None.
        limits: of pictures that are fetched.
        captions_optional: take pictures that have no caption as well; there may be no column of captions.

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
    image_column = find_column(path, columns, image_column, IMAGE_COLUMNS, "pictures", "image")
    caption_column = find_captions(path, columns, caption_column, CAPTION_COLUMNS, captions_optional)
    if split_column is not None:
        split_column = find_column(path, columns, split_column, (), "splits", "split")
    for column in (image_column, split_column):
        if column is not None and columns.count(column) > 1:
            raise ClipkitError(f"{path}: {columns.count(column)} columns are called {column!r}; give them other names")
    root = Path(image_root) if image_root is not None else None
    options = RowOptions(
        image_column, caption_column, split_column, root, limits or FetchLimits(), captions_optional=captions_optional
    )
    return grouped_records(path, rows, image_column, caption_column, options)


def grouped_records(
    path: Path, rows: Iterable[Row | Skipped], image_column: str, caption_column: str | None, options: RowOptions
) -> Source:
    """Group the rows by picture and split; what cannot be used is listed with its reason. A picture of several splits
    is a record of each, of which the plan leaves the one that counts most."""
    folder = path if path.is_dir() else path.parent
    roots = [options.image_root] if options.image_root is not None else [folder, folder / "images", folder / "Images"]
    if not roots[0].is_dir():
        raise ClipkitError(f"{roots[0]}: no such folder; check --image-root")
    split_column = options.split_column or ("split" if path.is_dir() else None)
    apart = (image_column, caption_column, split_column)
    pictures: dict[tuple[str, str | None], tuple[Any, dict[str, None], dict[str, Any]]] = {}  # by identity and split
    looked_at: dict[str, tuple[str, Any, str]] = {}
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
            identity, image, reason = _picture(cell, roots, options.limits)
        else:  # asking the disk once a picture, not once a caption
            identity, image, reason = looked_at.get(cell) or looked_at.setdefault(
                cell, _picture(cell, roots, options.limits)
            )
        if reason:
            if not identity:
                skipped.append(Skipped(f"{path.name} row {n_rows}", reason, row=True))
            elif identity not in missing:
                missing[identity] = reason
                skipped.append(Skipped(identity, reason))
            continue
        assert image is not None
        captions, odd = caption_texts(row.get(caption_column) if caption_column is not None else None)
        split = row.get(split_column) if split_column else None
        if odd:
            reason = f"a caption that is {odd} (row {n_rows} of {path.name}); expected a text"
            skipped.append(Skipped(identity, reason, row=True))
            if not captions:
                continue
        if not captions and not options.captions_optional:
            skipped.append(Skipped(identity, f"empty caption (row {n_rows} of {path.name})", row=True))
            continue
        if split not in (None, "") and str(split).strip().lower() not in _SPLIT_WORDS:
            reason = f"split {str(split)[:40]!r} is neither train, val nor test (row {n_rows} of {path.name})"
            skipped.append(Skipped(identity, reason, row=True))
            continue
        place = (identity, _SPLIT_WORDS[str(split).strip().lower()] if split else None)
        if place not in pictures:
            extra = {name: _plain(value) for name, value in row.items() if name not in apart}
            if caption_column == "label" and captions:
                extra.setdefault("label", captions[0])
            file = str(cell) if isinstance(cell, str) else _path_in(cell) or row.get("file")
            known = {
                **{k: v for k, v in extra.items() if v is not None},
                "file": file or f"row {n_rows} of {path.name}",
            }
            pictures[place] = (image, {}, known)
        pictures[place][1].update(dict.fromkeys(captions))
    if not n_rows:
        raise ClipkitError(f"{path} is empty: it has a header but no rows")
    if not pictures:
        first = skipped[0]
        hint = "check the paths, or give --image-root FOLDER to prepare or train" if missing else "fill in the table"
        raise ClipkitError(f"{path}: none of its {n_rows:,} rows can be used ({first.file}: {first.reason}); {hint}")
    records = [
        Record(f"{i:08d}", image, tuple(captions), meta, split)
        for i, ((_, split), (image, captions, meta)) in enumerate(pictures.items())
    ]
    return Source(str(path), records, skipped)


def find_column(
    path: Path, columns: list[str], wanted: str | None, known: tuple[str, ...], what: str, flag: str
) -> str:
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


def find_captions(
    path: Path, columns: list[str], wanted: str | None, known: tuple[str, ...], optional: bool
) -> str | None:
    """Name of the column of captions, as ``find_column`` finds it; None where there is none and need not be."""
    try:
        return find_column(path, columns, wanted, known, "captions", "caption")
    except ClipkitError:
        if wanted is None and optional:
            return None
        raise


def _picture(cell: Any, roots: Sequence[Path], limits: FetchLimits) -> tuple[str, Any, str]:
    """Identity, picture and, if it cannot be used, the reason. Equal identities are the same picture."""
    if callable(cell):
        return getattr(cell, "digest", "") or repr(cell), cell, ""
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
    if "\0" in name:
        return name.replace("\0", "\\0"), None, "no file has such a name"
    if re.match(r"https?://", name, re.IGNORECASE):
        return name, WebPicture(name, limits), ""
    if "://" in name:
        return name, None, "an address that is neither http nor https"
    if name.startswith("~/"):
        name = str(Path.home() / name[2:])
    for candidate in (name, name.replace("\\", "/")):  # a table written on Windows has backslashes
        for root in roots:
            path = os.path.normpath(root / candidate)
            if os.path.isfile(path):
                return path, Path(path), ""
    return os.path.normpath(roots[0] / name), None, "no such file"


def _path_in(cell: Any) -> str | None:
    return cell.get("path") if isinstance(cell, dict) else None


def caption_texts(cell: Any) -> tuple[list[str], str]:
    """Captions of a cell, with white space (newlines too) made single spaces, and what else was in their place: of an
    object the text under one of ``SAID`` is taken. Empty ones are dropped."""
    captions: list[str] = []
    odd = ""
    for said in _flat(_listed(cell) if isinstance(cell, str) and cell.lstrip().startswith("[") else cell):
        if isinstance(said, str | int | float):
            captions += [text] if (text := " ".join(str(said).split())) else []
        else:
            odd = f"an object without {', '.join(SAID)}" if isinstance(said, dict) else f"a {type(said).__name__}"
    return captions, odd


def _listed(cell: str) -> str | list[str]:
    """The texts in ``cell``, if it is a list of texts as JSON or Python writes one; else ``cell``."""
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            found = parse(cell.strip())
            if isinstance(found, list) and found and all(isinstance(said, str) for said in found):
                return found
    return cell


def _flat(cell: Any) -> Iterator[Any]:
    """What is in a cell: a value, or those of a list, and for an object what it says."""
    for said in cell if isinstance(cell, list | tuple) else [cell]:
        if isinstance(said, dict):
            found = next((said[name] for name in SAID if said.get(name) not in (None, "", [])), said)
            yield from found if isinstance(found, list | tuple) else [found]
        elif said is not None and not _is_nan(said):
            yield said


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it; None for what says nothing (empty, NaN, bytes, a picture)."""
    if (
        value is None
        or value == ""
        or isinstance(value, bytes)
        or callable(value)
        or (isinstance(value, float) and not math.isfinite(value))
    ):
        return None
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool) else str(value)
