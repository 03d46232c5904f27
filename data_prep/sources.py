"""Which source a path is, and its records."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from clipkit.cache import cache_dir
from clipkit.errors import ClipkitError, did_you_mean
from clipkit.pairs.index import compressed_tar
from data_prep.again import read_shards
from data_prep.folders import COMPRESSED_TAR, TEMPLATE, read_folder
from data_prep.huggingface import fetch_dataset, is_parquet_folder, is_saved, read_dataset
from data_prep.known import is_token_file, read_json, read_tokens
from data_prep.records import SPLIT_NAMES, Source
from data_prep.table_rows import TABLE_SUFFIXES
from data_prep.tables import RowOptions, read_table
from data_prep.urls import FetchLimits

STARTER = "openmoji"
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # of a Hugging Face folder of pictures


@dataclass(frozen=True)
class SourceOptions:
    """How to read a source."""

    image_column: str | None = None
    """Column of a table that names the pictures (files or addresses), or holds them."""
    caption_column: str | None = None
    """Column of a table that holds the captions."""
    split_column: str | None = None
    """Column of a table that says train, val or test."""
    image_root: Path | None = None
    """Folder that picture paths start from. Default: the table's own folder, or images in it."""
    separator: str | None = None
    """Separator of a CSV (found from its first line unless given)."""
    encoding: str | None = None
    """Text encoding of a table or of captions in files (UTF-8, or UTF-16 with a byte order mark, unless given)."""
    template: str = TEMPLATE
    """Caption of a picture in a folder per class; {} is the class."""
    captions_optional: bool = False
    """Take pictures that have no caption as well, for recipes that learn from pictures alone (simclr, moco, byol)."""
    limits: tyro.conf.OmitArgPrefixes[FetchLimits] = field(default_factory=FetchLimits)


def read_source(path: str | Path, options: SourceOptions | None = None, pass_by: bool = False) -> Source:
    """Records of a source, by what it is.

    Args:
        path: a table, a folder, shards, a name on the Hugging Face hub, or ``"openmoji"``.
        options: how to read it.
        pass_by: list shards that cannot be read at all, and go on with the others.

    Raises:
        ClipkitError: there is no such file or folder, it cannot be read, or nothing in it can be used.
    """
    options = options or SourceOptions()
    where = Path(path)
    if "{}" not in options.template:
        raise ClipkitError(
            f"--template {options.template!r} has no {{}} where the label goes; an example: {TEMPLATE!r}"
        )
    if where.is_dir():
        return _read_folder(where, options, pass_by)
    if where.is_file() and COMPRESSED_TAR.search(where.name):
        raise compressed_tar(where)
    if where.is_file() and where.suffix.lower() != ".tar":
        return _read_file(where, options)
    if where.suffix.lower() == ".tar" or re.search(r"[*?[]|\{.*(\.\.|,).*\}", str(path)):
        return _read_shards(path, options, pass_by)
    if str(path) == STARTER:
        from data_prep import cached_shards

        return read_shards(cached_shards(STARTER), pass_by)
    hint = did_you_mean(str(path), [STARTER])
    if not hint and re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not where.parent.exists() and not where.suffix:
        return read_dataset(fetch_dataset(str(path), cache_dir()), _row_options(options))
    raise ClipkitError(
        f"{path}: no such file or folder{hint or f'; a source is a table, a folder, shards, or the word {STARTER}'}"
    )


def _read_folder(where: Path, options: SourceOptions, pass_by: bool) -> Source:
    if any(where.glob("*.tar")) or any(where.glob("*/*.tar")):
        return _read_shards(where, options, pass_by)
    if is_saved(where):
        return read_dataset(where, _row_options(options))
    for name in _METADATA:
        if (where / name).is_file():
            return _read_file(where / name, options)
    if of_splits := _split_tables(where):
        return _joined(where, {split: _read_file(table, options) for split, table in of_splits.items()})
    if is_parquet_folder(where):
        return read_dataset(where, _row_options(options))
    return read_folder(
        where, template=options.template, encoding=options.encoding, captions_optional=options.captions_optional
    )


def _read_shards(path: str | Path, options: SourceOptions, pass_by: bool) -> Source:
    return read_shards(path, pass_by, options.template, options.caption_column, options.captions_optional)


def _split_tables(where: Path) -> dict[str, Path]:
    """Split to the metadata in the folder that is named like it."""
    found: dict[str, Path] = {}
    for folder in sorted(where.iterdir()):
        tables = [folder / name for name in _METADATA if (folder / name).is_file()]
        if tables and (split := SPLIT_NAMES.get(folder.name.lower())):
            found.setdefault(split, tables[0])
    return found


def _joined(where: Path, parts: dict[str, Source]) -> Source:
    """The splits' own sources as one."""
    records = [replace(record, split=split) for split, part in parts.items() for record in part.records]
    return Source(str(where), records, [skipped for part in parts.values() for skipped in part.skipped])


def _read_file(where: Path, options: SourceOptions) -> Source:
    suffix = where.suffix.lower()
    if suffix == ".json":
        return read_json(where, options.image_root, options.captions_optional)
    if is_token_file(where, options.encoding):
        return read_tokens(where, options.image_root, options.encoding)
    if suffix in (*TABLE_SUFFIXES, ".txt"):
        return read_table(
            where,
            image_column=options.image_column,
            caption_column=options.caption_column,
            split_column=options.split_column,
            image_root=options.image_root,
            separator=options.separator,
            encoding=options.encoding,
            limits=options.limits,
            captions_optional=options.captions_optional,
        )
    raise ClipkitError(
        f"{where}: not a source; expected a table ({', '.join(TABLE_SUFFIXES)}), COCO's .json, Flickr's token file, "
        f"a .tar, or a folder"
    )


def _row_options(options: SourceOptions) -> RowOptions:
    return RowOptions(
        options.image_column,
        options.caption_column,
        options.split_column,
        options.image_root,
        options.limits,
        options.template,
        options.captions_optional,
    )
