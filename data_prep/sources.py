"""Which source a path is, and its records."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipkit.errors import ClipkitError, did_you_mean
from data_prep.folders import TEMPLATE, read_folder
from data_prep.records import Source
from data_prep.table_rows import TABLE_SUFFIXES
from data_prep.tables import read_table

STARTER = "openmoji"


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source; see ``tables.read_table`` and ``folders.read_folder``."""

    image_column: str | None = None
    """Column of a table that names the pictures."""
    caption_column: str | None = None
    """Column of a table that holds the captions."""
    image_root: Path | None = None
    """Folder that a table's picture paths start from (its own folder unless given)."""
    separator: str | None = None
    """Separator of a CSV (found from its first line unless given)."""
    encoding: str | None = None
    """Text encoding of a table (UTF-8 unless given)."""
    template: str = TEMPLATE
    """Caption of a picture in a folder per class; {} is the class."""


def read_source(path: str | Path, options: SourceOptions | None = None) -> Source:
    """Records of a table or a folder.

    Raises:
        ClipkitError: there is no such file or folder, it cannot be read, or nothing in it can be used.
    """
    options = options or SourceOptions()
    where = Path(path)
    if where.is_dir():
        return read_folder(where, template=options.template)
    if where.suffix.lower() in TABLE_SUFFIXES:
        return read_table(
            where,
            image_column=options.image_column,
            caption_column=options.caption_column,
            image_root=options.image_root,
            separator=options.separator,
            encoding=options.encoding,
        )
    if where.suffix.lower() == ".tar":
        raise ClipkitError(f"{path}: a shard already; use it as it is")
    if where.exists():
        raise ClipkitError(
            f"{path}: not a table; expected a name that ends in {', '.join(TABLE_SUFFIXES)}, or a folder"
        )
    hint = did_you_mean(str(path), [STARTER]) or f'; a source is a table, a folder, or the word "{STARTER}"'
    raise ClipkitError(f"{path}: no such file or folder{hint}")
