"""Anybody's pictures and captions to WebDataset shards.

``prepare("captions.csv", "shards")`` writes ``shards/train/000000.tar`` and so on;
``cached_shards("captions.csv")`` does the same into a cache and is free the second time. Sources are tables
(CSV, TSV, JSONL, parquet), folders (with ``.txt`` captions, or a folder per class), the files that known data sets come
in, URL lists, shards, and the word ``openmoji``, the starter data.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from data_prep.cached import cache_entry, options_key, source_fingerprint
from data_prep.engine import cores
from data_prep.planning import PlanRule, SplitRule
from data_prep.prepare import prepare
from data_prep.records import Record, Skipped, Source, SplitSummary, Summary
from data_prep.shards import write_shards
from data_prep.sources import STARTER, SourceOptions, read_source
from data_prep.workplace import is_whole

__all__ = [
    "PlanRule",
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

_STARTER_FORMAT = 3  # counts up when the rules for captions, groups or splits change, so that caches are made anew
_IN_THIS_PROCESS = 2000  # pictures below which starting other processes takes longer than it saves


def cached_shards(
    source: str | Path,
    cache_dir: str | Path | None = None,
    *,
    split_val: float = 0.0,
    split_test: float = 0.0,
    seed: int = 0,
    samples_per_shard: int = 1000,
    processes: int | None = None,
    max_bad_fraction: float = 0.5,
    size: int = 224,
    show_progress: bool = False,
    **reading: Any,
) -> Path:
    """Folder of the shards of ``source`` (with ``train`` and so on in it), made on first use.

    It is ``<cache>/shards/<fingerprint>``, where the cache is ``cache_dir``, ``$CLIPKIT_CACHE`` or
    ``~/.cache/clipkit``, and the fingerprint covers the table's content, the options, and each picture's
    path, size and time of change: when one of these changes, other shards are made. Several processes may ask
    at once. Pictures are stored as they are, copies too; ``prepare`` has more to offer.

    Args and raises: as for ``prepare``.
    """
    processes = processes or cores()
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
                    processes=processes,
                    show_progress=show_progress,
                )
        return place
    options, split = SourceOptions(**reading), SplitRule(split_val, split_test, seed)
    read = read_source(source, options)
    key = {**options_key(split, options), "samples_per_shard": samples_per_shard}
    with cache_entry(source_fingerprint(read, Path(source), key), cache_dir) as (place, partial):
        if partial is not None:
            write_shards(
                read.records,
                partial,
                samples_per_shard,
                processes=processes if len(read.records) > _IN_THIS_PROCESS else 1,
                rule=PlanRule(split, "exact"),
                skipped=read.skipped,
                max_bad_fraction=max_bad_fraction,
                source=read.name,
                show_progress=show_progress,
            )
    return place
