"""``clipkit filter``: other thresholds for a prepared data set, without rewriting a shard."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from clipkit.errors import ClipkitError, exit_status
from clipkit.inputs import parse_flags
from data_prep.card import write_card
from data_prep.engine import Engine
from data_prep.filters import Filters, apply_filters


@dataclass(frozen=True)
class Options:
    """Hide samples of a prepared data set by their scores. Without a flag, nothing is hidden."""

    path: tyro.conf.Positional[str]
    """A data set that `clipkit prepare` made."""
    filters: tyro.conf.OmitArgPrefixes[Filters] = field(default_factory=Filters)
    engine: Engine = "local"
    """Who asks --clip-model: this process, or ray."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit status, 2 for a mistake in what was given."""

    def job() -> None:
        options = parse_flags(Options, sys.argv[1:] if arguments is None else arguments, "clipkit filter")
        if not Path(options.path).is_dir():
            raise ClipkitError(f"{options.path}: no such folder; give a data set that `clipkit prepare` made")
        report = apply_filters(options.path, options.filters, options.engine)
        assert report is not None
        write_card(Path(options.path))
        for split, counts in report["splits"].items():
            why = ", ".join(f"{n:,} by {name}" for name, n in counts.items() if name not in ("samples", "kept") and n)
            print(
                f"{split}: {counts['kept']:,} of {counts['samples']:,} samples stay{f' (hidden: {why})' if why else ''}"
            )

    return exit_status(job)
