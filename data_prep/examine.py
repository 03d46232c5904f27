"""What ``clipkit doctor`` looks at: every picture and caption of a source, and the run that is to read them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipkit.config import Config
from clipkit.data_option import source_names
from clipkit.errors import ClipkitError
from clipkit.run_file import load_config
from data_prep.copies import Components, copy_pairs
from data_prep.engine import run_tasks
from data_prep.images import Encoding
from data_prep.records import SPLITS, Record, Skipped
from data_prep.sources import SourceOptions, read_source
from data_prep.stage import Facts, joined, stage, stage_tasks


@dataclass(frozen=True)
class Examined:
    """Everything that the checks judge.

    Attributes:
        name: what messages call it.
        records: good samples, in the source's order, each with its split (``train`` where the source has none).
        copy_of: first row of the set of copies that each record is in.
        bad: what could not be used.
        config: the run, if one was given.
        batch_size: of the training that is to come.
        sizes: samples of each training shard, if the source has shards.
    """

    name: str
    records: list[Record]
    copy_of: list[int]
    bad: list[Skipped]
    config: Config | None
    batch_size: int
    sizes: list[int]

    def of(self, split: str) -> list[int]:
        """Rows of a split."""
        return [row for row, record in enumerate(self.records) if record.split == split]

    @property
    def splits(self) -> dict[str, int]:
        """Samples of each split that has some."""
        counts = {split: len(self.of(split)) for split in SPLITS}
        return {split: n for split, n in counts.items() if n}


def examine(
    path: str | None, config_path: str | None, batch_size: int | None, processes: int, options: SourceOptions
) -> Examined:
    """Read all of ``path`` (of the run's training data, if None), and the run's validation data; decode every picture.

    Raises:
        ClipkitError: nothing to look at, or it cannot be read at all.
    """
    config = None
    if config_path:
        config = load_config(Path(config_path, "config.yaml") if Path(config_path).is_dir() else config_path)
        options = _as_read_by(config, options)
    if path is None and (config is None or config.data.train_data is None):
        raise ClipkitError("nothing to examine: give a data set, or --config with a run that has train_data")
    name = path or str(config.data.train_data if config else "")
    names = [name] if path or config is None else source_names(name, config.data.train_weights)
    sources = [read_source(each, options, pass_by=True) for each in names]
    records = [_with_split(record, record.split or "train") for source in sources for record in source.records]
    skipped = [entry for source in sources for entry in source.skipped]
    sizes = list(_shard_sizes(records))
    if config is not None and config.data.val_data is not None:  # training takes no other split of its train_data then
        held_out = read_source(config.data.val_data, options, pass_by=True)
        rest = [record for record in held_out.records if record.split != "train"]
        records = [record for record in records if record.split == "train"]
        records += [_with_split(r, "val") for r in [r for r in rest if r.split == "val"] or rest]
        skipped += [entry for entry in held_out.skipped if entry not in skipped]
    facts = _facts(records, processes)
    skipped += [Skipped(records[row].name, why) for row, (why, _) in sorted(facts.reasons.items())]
    good = facts["good"].nonzero()[0].tolist()
    sets = Components(len(records))
    sets.join(copy_pairs(facts, near=True))
    place = {row: n for n, row in enumerate(good)}
    return Examined(
        name,
        [records[row] for row in good],
        [place[sets.first(row)] for row in good],
        skipped,
        config,
        batch_size or (config.optim.batch_size if config else 256),
        sizes,
    )


def _as_read_by(config: Config, options: SourceOptions) -> SourceOptions:
    """``options``, with what they leave open as the run reads its data."""
    data = config.data
    of_run: dict[str, Any] = {
        "image_column": data.image_column,
        "caption_column": data.caption_column,
        "image_root": None if data.image_root is None else Path(data.image_root),
        "separator": data.separator,
        "encoding": data.encoding,
    }
    if data.pictures_alone:
        options = replace(options, captions_optional=True)
    return replace(options, **{name: value for name, value in of_run.items() if getattr(options, name) is None})


def _with_split(record: Record, split: str) -> Record:
    return Record(record.key, record.image, record.captions, record.meta, split)


def _facts(records: list[Record], processes: int) -> Facts:
    with tempfile.TemporaryDirectory(prefix="clipkit-doctor-") as folder:
        tasks = stage_tasks(records, Path(folder), Encoding(), verify=True, with_look=True, keep_bytes=False)
        return joined(list(run_tasks(stage, tasks, processes)))


def _shard_sizes(records: list[Record]) -> Iterator[int]:
    """Samples of each training shard, in order."""
    counts: dict[Path, int] = {}
    for record in records:
        shard = getattr(record.image, "path", None)
        if isinstance(shard, Path) and shard.suffix == ".tar" and record.split == "train":
            counts[shard] = counts.get(shard, 0) + 1
    yield from counts.values()
