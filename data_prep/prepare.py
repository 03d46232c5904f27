"""``prepare``: from a source to shards, filters and a data card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError
from data_prep import language
from data_prep.card import write_card
from data_prep.engine import Engine, cores
from data_prep.filters import Filters, apply_filters
from data_prep.images import Encoding
from data_prep.planning import Copies, PlanRule, SplitRule
from data_prep.records import Record, Skipped, Source, Summary, unseen
from data_prep.shards import write_shards
from data_prep.sources import STARTER, SourceOptions, read_source


@dataclass(frozen=True)
class CopyOptions:
    """What counts as a copy, and what happens to copies. All copies of a picture fall in one split."""

    find_copies: Copies = "near"
    """Copies to look for: exact (equal bytes), near (also equal to the eye: scaled, compressed again), or off."""
    drop_copies: bool = False
    """Keep only the largest picture of each set of copies; captions of exact copies are joined to it."""
    dedup_model: str | None = None
    """Also find copies with this model (a run, a directory, or an open_clip NAME,TAG): crops, mirror images, overlaid
    text."""
    dedup_threshold: float = 0.95
    """Cosine similarity from which two pictures are copies to --dedup-model."""
    decontaminate: tuple[str, ...] = ()
    """Evaluation sets (any source) whose pictures are left out of the training split."""


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    split_val: float = 0.0,
    split_test: float = 0.0,
    seed: int = 0,
    group: str = "group",
    shuffle: bool = False,
    samples_per_shard: int = 1000,
    encoding: Encoding | None = None,
    copies: CopyOptions | None = None,
    filters: Filters | None = None,
    processes: int | None = None,
    engine: Engine = "local",
    max_bad_fraction: float = 0.5,
    size: int = 224,
    overwrite: bool = False,
    show_progress: bool = False,
    reading: SourceOptions | None = None,
    **more_reading: Any,
) -> Summary:
    """Write the shards of ``source`` below ``out``, with a data card.

    An interrupted preparation goes on where it was when it is called again, and ends with the same bytes. Where
    pictures were missing that may be there another time (URLs), calling it again asks for those alone.

    Args:
        source: a table, a folder, a file of a known data set, shards, a Hugging Face data set, or ``"openmoji"``.
        out: folder to make; ``out/dataset.json`` says that it is whole.
        split_val, split_test, seed: random split of pictures whose source has none.
        group: field of the source whose equal values stay in one split.
        shuffle: write the samples in a random order instead of the source's.
        samples_per_shard: pictures in a tar.
        encoding: size and format of the stored pictures; as they are if None.
        copies: what happens to copies.
        filters: samples to hide by their scores; ``apply_filters`` changes that later without rewriting shards.
        processes: processes at work; one a core, at most eight, if None.
        engine: ``local``, or ``ray``; ``out`` and the source must then be visible to the whole cluster.
        max_bad_fraction: refuse the source above this share of bad pictures or rows.
        size: side of the pictures that are drawn for ``openmoji``, in pixels.
        overwrite: replace a data set that is at ``out``.
        show_progress: progress bars on the error stream.
        reading, more_reading: how to read the source, see ``SourceOptions``.

    Raises:
        ClipkitError: anything wrong with what was given, in one line.
    """
    copies, processes = copies or CopyOptions(), processes or cores()
    if processes < 1:
        raise ClipkitError(f"--processes {processes}: expected at least 1")
    if filters is not None and filters.languages:
        language.require()
    for name in (source, *copies.decontaminate):
        if Path(out).resolve() in (where := Path(name).resolve(), *where.parents):
            raise ClipkitError(f"{name} lies in {out}, which would be replaced; choose another folder for the shards")
    if str(source) == STARTER:
        from data_prep.openmoji import prepare_openmoji

        summary = prepare_openmoji(
            out,
            size,
            samples_per_shard=samples_per_shard,
            processes=processes,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    else:
        options = reading or SourceOptions(**more_reading)
        read = read_source(source, options)
        evaluation, not_seen = _evaluation(copies.decontaminate, options)
        summary = _write(
            replace(read, skipped=[*not_seen, *read.skipped]),
            out,
            samples_per_shard,
            processes=processes,
            engine=engine,
            encoding=encoding,
            rule=PlanRule(
                SplitRule(split_val, split_test, seed),
                copies.find_copies,
                copies.drop_copies,
                group,
                shuffle,
                copies.dedup_model,
                copies.dedup_threshold,
            ),
            evaluation=evaluation,
            languages=language.can_detect(),
            max_bad_fraction=max_bad_fraction,
            overwrite=overwrite,
            show_progress=show_progress,
        )
    apply_filters(out, filters, engine)
    write_card(Path(out))
    return summary


def _write(read: Source, out: str | Path, samples_per_shard: int, **options: Any) -> Summary:
    return write_shards(
        read.records, out, samples_per_shard, skipped=read.skipped, source=read.name, details=read.details, **options
    )


def _evaluation(sources: Sequence[str], options: SourceOptions) -> tuple[list[Record], list[Skipped]]:
    """The pictures of all evaluation sets, and what could not be read of them."""
    of_pictures = replace(options, captions_optional=True, caption_column=None)
    read = [read_source(source, of_pictures) for source in sources]
    return [r for source in read for r in source.records], [unseen(s.file, s.reason) for r in read for s in r.skipped]
