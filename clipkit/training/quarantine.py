"""Samples that cannot be used: listed in the run, counted once, and too many of them stop it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from clipkit.errors import ClipkitError
from clipkit.pairs import Bad, ShardSet
from clipkit.training.console import Console
from clipkit.training.run import append_lines, lines_up_to

QUARANTINE = "quarantine.jsonl"
BAD_SHARE, BAD_COUNT = 0.01, 10  # more bad samples than both of these stop the run


def log_bad(run: Path, bad: Iterable[Bad], step: int = 0) -> None:
    """Append to the run's quarantine log what was found to be bad in step ``step``."""
    append_lines(
        run / QUARANTINE, ({"sample": b.sample, "where": b.where, "reason": b.reason, "step": step} for b in bad)
    )


def logged_bad(run: Path, start: int) -> set[str]:
    """Where the samples are that the quarantine log names up to step ``start``: later steps are done again."""
    return {str(line.get("where")) for line in lines_up_to(run / QUARANTINE, start)}


def report_left_out(left_out: Sequence[Bad], shards: ShardSet, run: Path, console: Console) -> None:
    """Say what of the training data could not become a sample; stop when it is too much."""
    if left_out:
        first = "; ".join(f"{b.where}: {b.reason}" for b in left_out[:3])
        console.say(f"left out {len(left_out)} of {shards.name}, listed in {run / QUARANTINE} ({first})")
        check_bad(len(left_out), len(shards) + len(left_out), shards.name, run)


def check_bad(count: int, n: int, name: str, run: Path) -> None:
    """Stop when more than ten samples, and more than 1 % of them, cannot be used."""
    if count > BAD_COUNT and count > BAD_SHARE * n:
        raise ClipkitError(
            f"{count} of {n} samples of {name} cannot be used, more than {BAD_SHARE:.0%}; they are listed in "
            f"{run / QUARANTINE}: mend or remove them"
        )
