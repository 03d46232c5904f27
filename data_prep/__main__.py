"""``python -m data_prep SOURCE OUT``: pictures and captions to shards, from the command line."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from typing import Annotated

import tyro

from clipkit.errors import exit_status
from clipkit.inputs import parse_flags
from data_prep import SourceOptions, prepare


@dataclass(frozen=True)
class Options:
    """Turn a table of pictures and captions, a folder, or the starter data into WebDataset shards."""

    source: tyro.conf.Positional[str]
    """A .csv, .tsv, .jsonl or .parquet table, a folder of pictures, or the word openmoji."""
    out: tyro.conf.Positional[str]
    """Folder to write the shards into."""
    reading: Annotated[SourceOptions, tyro.conf.arg(name="")] = field(default_factory=SourceOptions)
    split_val: float = 0.0
    """Share of the pictures for validation, chosen by a hash of their content."""
    split_test: float = 0.0
    """Share of the pictures for testing."""
    seed: int = 0
    """Another seed makes another split."""
    samples_per_shard: int = 1000
    """Pictures in a shard."""
    workers: int | None = None
    """Threads that check pictures (one a core, at most eight, unless given)."""
    max_bad_fraction: float = 0.5
    """Refuse a source of which more than this share cannot be used."""
    size: int = 224
    """Side of the drawn pictures of openmoji, in pixels."""
    overwrite: bool = False
    """Replace a data set that is in OUT."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 2 for a mistake in what was given."""

    def job() -> None:
        arguments_given = sys.argv[1:] if arguments is None else arguments
        options = parse_flags(Options, arguments_given, "clipkit prepare")
        rest = {name: value for name, value in vars(options).items() if name not in ("source", "out", "reading")}
        print(
            prepare(options.source, options.out, show_progress=sys.stderr.isatty(), **asdict(options.reading), **rest)
        )

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
