"""The health of the space while a run is under way: figures for its records, and a word when something goes wrong."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.encoders import Embeddings
from clipkit.evaluation.health import Health, measure_health
from clipkit.evaluation.verdicts import diagnose
from clipkit.pairs import PairBatch

_ROWS = 256  # embeddings of a side that are looked at


class Watch:
    """Looks at the embeddings of a step, and says each kind of trouble once.

    Args:
        quiet_until: step before which nothing is said: untrained towers put all inputs into one narrow cone.
    """

    def __init__(self, quiet_until: int) -> None:
        self.quiet_until = quiet_until
        self._said: set[str] = set()

    def look(self, embeddings: Embeddings, batch: PairBatch, step: int) -> tuple[dict[str, Any], list[str]]:
        """A record for ``metrics.jsonl``, and what there is to say.

        Args:
            embeddings, batch: this process's, of step ``step``.
        """
        sides = _sides(embeddings, batch)
        if sides is None:
            return {}, []
        first, second, owner, names = sides
        health: Health = measure_health(first.detach(), second.detach(), owner)
        record = {"kind": "health", "step": step, **{k: v for k, v in health.metrics().items() if v == v}}
        if step <= self.quiet_until:
            return record, []
        found = [verdict for verdict in diagnose(health, names) if verdict.kind not in self._said]
        self._said |= {verdict.kind for verdict in found}
        return record, [f"step {step}: {verdict.sentence}" for verdict in found]


def _sides(e: Embeddings, batch: PairBatch) -> tuple[Tensor, Tensor, Tensor, tuple[str, str]] | None:
    """Both sides of what is compared, the row of the first side that each of the second belongs to, and their names."""
    if e.views is not None:
        other = e.views[1] if len(e.views) > 1 else e.targets[0] if e.targets is not None else None
        if other is None or len(other) < 2:
            return None
        first, second = e.views[0][:_ROWS], other[:_ROWS]
        return first, second, torch.arange(len(first)), ("first views", "second views")
    if e.texts is None:
        return None
    own = batch.own_texts()
    texts, ids = e.texts[own], batch.text_ids[own]
    if e.images is None:
        first, second = texts[0::2][:_ROWS], texts[1::2][:_ROWS]
        names = ("sentences", "their second versions")
        return (first, second, torch.arange(len(first)), names) if len(first) == len(second) > 1 else None
    images = e.images[:_ROWS]
    if len(images) < 2:
        return None
    row_of = {int(i): row for row, i in enumerate(batch.image_ids[:_ROWS].tolist())}
    there = torch.tensor([int(i) in row_of for i in ids.tolist()], dtype=torch.bool, device=texts.device)
    owner = torch.tensor([row_of[int(i)] for i in ids[there].tolist()])
    return (images, texts[there], owner, ("pictures", "texts")) if len(owner) > 1 else None
