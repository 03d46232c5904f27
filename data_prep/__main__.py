"""``python -m data_prep SOURCE OUT``: pictures and captions to shards, from the command line."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import tyro

from clipkit.errors import ClipkitError, exit_status
from clipkit.inputs import parse_flags
from data_prep.engine import Engine
from data_prep.filters import Filters
from data_prep.images import Encoding
from data_prep.prepare import CopyOptions, prepare
from data_prep.sources import SourceOptions


@dataclass(frozen=True)
class Options:
    """Turn pictures and captions into WebDataset shards, with a data card.

    Killed or interrupted, the same command goes on where it was. Where addresses did not answer, the same command asks
    those again, and no others.
    """

    source: tyro.conf.Positional[str]
    """A .csv, .tsv, .jsonl or .parquet table of files or addresses, a folder of pictures, COCO's or Flickr's captions
    file, a Hugging Face data set (folder or name), shards, or the word openmoji."""
    out: tyro.conf.Positional[str]
    """Folder to write the shards into."""
    reading: tyro.conf.OmitArgPrefixes[SourceOptions] = field(default_factory=SourceOptions)
    encoding: tyro.conf.OmitArgPrefixes[Encoding] = field(default_factory=Encoding)
    split_val: float = 0.0
    """Share of the pictures for validation, chosen by a hash of their content."""
    split_test: float = 0.0
    """Share of the pictures for testing."""
    seed: int = 0
    """Another seed makes another split."""
    group: str = "group"
    """Column or field whose equal values stay in one split."""
    shuffle: bool = False
    """Write the samples in a random order instead of the source's."""
    samples_per_shard: int = 1000
    """Pictures in a shard."""
    copies: tyro.conf.OmitArgPrefixes[CopyOptions] = field(default_factory=CopyOptions)
    filters: tyro.conf.OmitArgPrefixes[Filters] = field(default_factory=Filters)
    processes: int | None = None
    """Processes at work. Default: one a core, at most eight."""
    engine: Engine = "local"
    """ray runs the same tasks on a Ray cluster ($RAY_ADDRESS), or on a Ray of this machine."""
    max_bad_fraction: float = 0.5
    """Refuse a source of which more than this share cannot be used."""
    size: int = 224
    """Side of the drawn pictures of openmoji, in pixels."""
    overwrite: bool = False
    """Replace a data set that is in OUT."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 2 for a mistake in what was given."""

    def job() -> None:
        options = parse_flags(Options, sys.argv[1:] if arguments is None else arguments, "clipkit prepare")
        given = dict(vars(options))
        source, out = given.pop("source"), given.pop("out")
        given["filters"] = None if options.filters == Filters() else options.filters
        try:
            print(prepare(source, out, show_progress=sys.stderr.isatty(), **given))
        except OSError as error:  # a full disk, a folder that cannot be written to
            where = f"{error.filename}: " if error.filename else ""
            raise ClipkitError(f"{where}{error.strerror or error}; the same command goes on from here") from None

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
