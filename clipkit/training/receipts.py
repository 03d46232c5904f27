"""A receipt for every epoch: how many samples of each shard were seen, and how many were replaced.

Seen and substituted together are the shard's samples, each epoch; quarantined are those of the substituted that were
found to be bad for the first time. What was delivered is counted, not what should have been; the counts of unfinished
epochs travel in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object

from clipkit.pairs import Bad, Mixture, Order, PairBatch, ShardSet
from clipkit.training.run import append_lines, cut_lines

RECEIPTS = "receipts.jsonl"
_FIELDS = ("seen", "substituted", "quarantined", "truncated")

Counts = dict[str, list[int]]
"""``"epoch shard"`` (numbers) -> seen, substituted, quarantined, truncated captions."""


class Receipts:
    """Counts of the epochs that are under way, of all processes together when they are asked for.

    Args:
        run: the run directory.
        shards, order: of the training data.
        accelerator: the processes.
        start: step of the checkpoint that the run goes on from; receipts of later steps are cut off.
        counts: the counts in that checkpoint.
    """

    def __init__(
        self,
        run: Path,
        shards: ShardSet,
        order: Order | Mixture,
        accelerator: Accelerator,
        start: int,
        counts: Counts,
    ) -> None:
        self.path = run / RECEIPTS
        self.shards, self.order, self.accelerator = shards, order, accelerator
        self._last = np.cumsum(shards.sizes)
        self._counts: Counts = {}
        if accelerator.is_main_process:
            self._counts = {key: list(values) for key, values in counts.items()}
            cut_lines(self.path, start)

    def count(self, batch: PairBatch) -> None:
        """Note this process's part of a step."""
        for (epoch, sample), used in zip(batch.items, batch.image_ids.tolist(), strict=True):
            self._add(epoch, sample, 0 if used == sample else 1)
        for epoch, sample in batch.truncated:
            self._add(epoch, sample, 3)

    def quarantine(self, new: Iterable[Bad]) -> None:
        """Note samples that were found to be bad for the first time; one process does, for all of them."""
        for bad in new:
            self._add(bad.epoch, bad.sample, 2)

    def close(self, start: int, stop: int, step: int) -> list[dict[str, Any]]:
        """Write the receipts of the epochs that end in positions [start, stop); all processes call it alike."""
        written = []
        for part, epoch in self.order.finished(start, stop):
            first, last = self._shards_of(part)
            keys = [f"{epoch} {shard}" for shard in range(first, last)]
            mine = {key: self._counts.pop(key) for key in keys if key in self._counts}
            total = self._sum(mine)
            by_shard = [total.get(key, [0] * len(_FIELDS)) for key in keys]
            receipt: dict[str, Any] = {"epoch": epoch, "step": step}
            if self.shards.parts:
                receipt["source"] = self.shards.parts[part].name
            receipt |= dict(zip(_FIELDS, np.sum(by_shard, axis=0).tolist(), strict=True))
            names = [str(shard.path) for shard in self.shards.shards[first:last]]
            receipt["shards"] = dict(zip(names, by_shard, strict=True))
            written.append(receipt)
        if written and self.accelerator.is_main_process:
            append_lines(self.path, written)
        return written

    def counts(self) -> Counts:
        """The counts of the unfinished epochs, of all processes; all of them call it."""
        return self._sum(self._counts)

    def _add(self, epoch: int, sample: int, field: int) -> None:
        self._counts.setdefault(f"{epoch} {self._shard(sample)}", [0] * len(_FIELDS))[field] += 1

    def _shard(self, sample: int) -> int:
        return int(np.searchsorted(self._last, sample, side="right"))

    def _shards_of(self, part: int) -> tuple[int, int]:
        if not self.shards.parts:
            return 0, len(self.shards.shards)
        first = sum(p.n_shards for p in self.shards.parts[:part])
        return first, first + self.shards.parts[part].n_shards

    def _sum(self, counts: Counts) -> Counts:
        if self.accelerator.num_processes == 1:
            return {key: list(values) for key, values in counts.items()}
        total: Counts = {}
        for theirs in gather_object([counts]):
            for key, values in theirs.items():
                total[key] = [a + b for a, b in zip(total.get(key, [0] * len(_FIELDS)), values, strict=True)]
        return total


def summary(receipt: dict[str, Any]) -> str | None:
    """A receipt as a line for people; None if every sample was seen as it is."""
    source = f" of {receipt['source']}" if "source" in receipt else ""
    rest = [f"{receipt[name]:,} {name}" for name in ("substituted", "quarantined") if receipt[name]]
    if receipt["truncated"]:
        rest.append(f"{receipt['truncated']:,} captions longer than the text tower's context")
    if not rest:
        return None
    return f"epoch {receipt['epoch']}{source}: " + ", ".join([f"{receipt['seen']:,} samples seen", *rest])
