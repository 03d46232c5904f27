"""Anybody's pictures and captions to WebDataset shards.

``prepare("captions.csv", "shards")`` writes ``shards/train/000000.tar`` and so on;
``cached_shards("captions.csv")`` does the same into a cache and is free the second time. Sources are tables
(CSV, TSV, JSONL, parquet), folders (with ``.txt`` captions, or a folder per class) and the word ``openmoji``,
the starter data.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from data_prep.cached import cache_entry, options_key, source_fingerprint
from data_prep.records import Record, Skipped, Source, SplitSummary, Summary
from data_prep.shards import SplitRule, is_whole, write_shards
from data_prep.sources import STARTER, SourceOptions, read_source

__all__ = [
    "Record",
    "Skipped",
    "Source",
    "SourceOptions",
    "SplitRule",
    "SplitSummary",
    "Summary",
    "cached_shards",
    "is_whole",
    "prepare",
    "read_source",
    "write_shards",
]


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    split_val: float = 0.0,
    split_test: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    max_bad_fraction: float = 0.5,
    size: int = 224,
    overwrite: bool = False,
    show_progress: bool = False,
    **reading: Any,
) -> Summary:
    """Write the shards of ``source`` below ``out``.

    Args:
        source: a table, a folder, or ``"openmoji"``.
        out: folder to make; ``out/dataset.json`` says that it is whole.
        split_val, split_test, seed: random split of pictures whose source has none, by a hash of their bytes.
        samples_per_shard: pictures in a tar.
        workers: threads that check pictures, processes that draw ``openmoji``; one a core, at most eight, if
            None.
        max_bad_fraction: refuse the source above this share of bad pictures or rows.
        size: side of the pictures that are drawn for ``openmoji``, in pixels.
        overwrite: replace a data set that is at ``out``.
        show_progress: a progress bar on the error stream.
        reading: ``image_column``, ``caption_column``, ``image_root``, ``separator``, ``encoding``,
            ``template``.

    Raises:
        ClipkitError: anything wrong with what was given, in one line.
    """
    split = SplitRule(split_val, split_test, seed)
    workers = workers or _cores()
    if str(source) == STARTER:
        from data_prep.openmoji import prepare_openmoji

        return prepare_openmoji(
            out,
            size,
            samples_per_shard=samples_per_shard,
            workers=workers,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    read = read_source(source, SourceOptions(**reading))
    return _write(read, out, split, samples_per_shard, workers, max_bad_fraction, overwrite, show_progress)


def cached_shards(
    source: str | Path,
    cache_dir: str | Path | None = None,
    *,
    split_val: float = 0.0,
    split_test: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    max_bad_fraction: float = 0.5,
    size: int = 224,
    show_progress: bool = False,
    **reading: Any,
) -> Path:
    """Folder of the shards of ``source`` (with ``train`` and so on in it), made on first use.

    It is ``<cache>/shards/<fingerprint>``, where the cache is ``cache_dir``, ``$CLIPKIT_CACHE`` or
    ``~/.cache/clipkit``, and the fingerprint covers the table's content, the options, and each picture's
    path, size and time of change: when one of these changes, other shards are made. Several processes may ask
    at once.

    Args and raises: as for ``prepare``.
    """
    split = SplitRule(split_val, split_test, seed)
    workers = workers or _cores()
    if str(source) == STARTER:
        from data_prep.openmoji import openmoji_versions, prepare_openmoji

        said = json.dumps([_STARTER_FORMAT, openmoji_versions(), size, samples_per_shard])
        fingerprint = STARTER + "-" + hashlib.blake2b(said.encode(), digest_size=12).hexdigest()
        with cache_entry(fingerprint, cache_dir) as (place, partial):
            if partial is not None:
                prepare_openmoji(
                    partial,
                    size,
                    samples_per_shard=samples_per_shard,
                    workers=workers,
                    show_progress=show_progress,
                )
        return place
    options = SourceOptions(**reading)
    read = read_source(source, options)
    key = {**options_key(split, options), "samples_per_shard": samples_per_shard}
    with cache_entry(source_fingerprint(read, Path(source), key), cache_dir) as (place, partial):
        if partial is not None:
            _write(read, partial, split, samples_per_shard, workers, max_bad_fraction, False, show_progress)
    return place


_STARTER_FORMAT = 3  # counts up when the rules for captions, groups or splits change, so that caches are made anew


def _cores() -> int:
    """Cores that this process may use, at most eight."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


def _write(
    read: Source,
    out: str | Path,
    split: SplitRule,
    samples_per_shard: int,
    workers: int,
    max_bad_fraction: float,
    overwrite: bool,
    show_progress: bool,
) -> Summary:
    return write_shards(
        read.records,
        out,
        samples_per_shard,
        workers=workers,
        split=split,
        skipped=read.skipped,
        max_bad_fraction=max_bad_fraction,
        source=read.name,
        overwrite=overwrite,
        show_progress=show_progress,
    )
