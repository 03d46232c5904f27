"""The comparison table: queries x keys, with a score, a role and a count for each cell.

Every contrastive method edits this one table. A ``Comparison`` holds what the table is made of, never the table: the
embeddings, the ids that say which cells are positive, and the temperature and bias of the scores.

On W processes rank r holds its own queries and everybody's keys; the table's rows are split over the ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from clipkit.encoders import Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives.exchange import gather_rows, row_counts, world_size


@dataclass(frozen=True)
class Comparison:
    """What is compared with what.

    Attributes:
        queries: (Q, D) unit norm, this rank's.
        keys: (K, D) unit norm, all ranks', differentiable across ranks.
        query_ids: (Q,) int64.
        key_ids: (K,) int64; a cell is a positive where the ids are equal.
        log_scale: (1,) log inverse temperature.
        bias: (1,) added to every score, or None.
        own_keys: the part of ``keys`` that came from this rank.
    """

    queries: Tensor
    keys: Tensor
    query_ids: Tensor
    key_ids: Tensor
    log_scale: Tensor
    bias: Tensor | None = None
    own_keys: slice = field(default_factory=lambda: slice(None))

    def scores(self) -> Tensor:
        """(Q, K) scores exp(log_scale) <q, k> + bias, in float32 (float64 for float64 input) under any autocast."""
        with torch.autocast(self.queries.device.type, enabled=False):
            queries, keys = (x if x.dtype == torch.float64 else x.float() for x in (self.queries, self.keys))
            scores = self.log_scale.exp().to(queries.dtype) * (queries @ keys.T)
            return scores if self.bias is None else scores + self.bias.to(queries.dtype)

    def positives(self) -> Tensor:
        """(Q, K) bool, True where query and key belong together."""
        return self.query_ids[:, None] == self.key_ids[None, :]


def compare(embeddings: Embeddings, image_ids: Tensor, text_ids: Tensor) -> Comparison:
    """Pictures as queries, everybody's texts as keys.

    Args:
        embeddings: this rank's images (B, D) and texts (T, D).
        image_ids: (B,) int64, this rank's.
        text_ids: (T,) int64, this rank's; equal ids are positives, wherever they come from.

    Raises:
        ClipkitError: shapes that do not belong together.
    """
    images, texts = embeddings.images, embeddings.texts
    if images is None or texts is None:
        raise ClipkitError("a comparison needs images and texts")
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ClipkitError(f"images {tuple(images.shape)} and texts {tuple(texts.shape)} are not in one space")
    if image_ids.shape != images.shape[:1] or text_ids.shape != texts.shape[:1]:
        raise ClipkitError(
            f"ids {tuple(image_ids.shape)} and {tuple(text_ids.shape)} do not fit images {tuple(images.shape)} "
            f"and texts {tuple(texts.shape)}"
        )
    own, all_texts, all_ids = slice(None), texts, text_ids
    if world_size() > 1:
        counts = row_counts(len(texts), texts.device)
        first = sum(counts[: torch.distributed.get_rank()])
        own = slice(first, first + len(texts))
        all_texts, all_ids = gather_rows(texts, counts), gather_rows(text_ids, counts)
    return Comparison(images, all_texts, image_ids, all_ids, embeddings.log_scale, embeddings.bias, own)
