"""Samples that cannot be used: listed in the run, counted once, and too many of them stop it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from clipkit.errors import ClipkitError
from clipkit.pairs import Bad, PairBatch, ShardSet
from clipkit.training.console import Console
from clipkit.training.run import append_lines, cut_lines, lines_up_to

QUARANTINE = "quarantine.jsonl"
BAD_SHARE, BAD_COUNT = 0.01, 10  # more bad samples than both of these stop the run


def log_bad(run: Path, bad: Iterable[Bad], step: int = 0) -> None:
    """Append to the run's quarantine log what was found to be bad in step ``step``."""
    append_lines(
        run / QUARANTINE, ({"sample": b.sample, "where": b.where, "reason": b.reason, "step": step} for b in bad)
    )


class Quarantine:
    """The bad samples of a run so far, of all processes together.

    Args:
        run: the run directory.
        shards: the training data.
        accelerator: the processes.
        console: where people look.
        start: step of the checkpoint that the run goes on from; what later steps found is found again.
    """

    def __init__(self, run: Path, shards: ShardSet, accelerator: Accelerator, console: Console, start: int) -> None:
        self.run, self.shards, self.accelerator, self.console = run, shards, accelerator, console
        self._listed = {str(line.get("where")) for line in lines_up_to(run / QUARANTINE, start)}
        accelerator.wait_for_everyone()  # all have read the log before one cuts it
        if accelerator.is_main_process:
            cut_lines(run / QUARANTINE, start)

    def take(self, batch: PairBatch, step: int) -> list[Bad]:
        """List what this step found to be bad for the first time; all processes call it alike.

        Returns:
            What was new, on the main process, and nothing on the others.

        Raises:
            ClipkitError: there are too many by now.
        """
        new = {b.where: b for b in batch.bad if b.where not in self._listed}
        if self.accelerator.num_processes > 1:
            total = torch.tensor([len(new)], device=self.accelerator.device)
            if self.accelerator.reduce(total, reduction="sum").item():  # a sample counts once, whoever read it
                for found in gather_object([new]):
                    new |= found
        if not new:
            return []
        self._listed |= set(new)
        if self.accelerator.is_main_process:
            log_bad(self.run, new.values(), step)
        self.console.say(f"skipped a bad sample: {next(iter(new.values())).reason}", detail=True)
        check_bad(len(self._listed), len(self.shards), self.shards.name, self.run)
        return list(new.values()) if self.accelerator.is_main_process else []


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
