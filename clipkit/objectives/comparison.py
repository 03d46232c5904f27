"""The comparison table: queries x keys, with a score, a role and a count for each cell.

Every contrastive method edits this one table. A ``Comparison`` holds what the table is made of, never the table: the
embeddings, the ids that say which cells are positive, and the temperature and bias of the scores.

On W processes every rank brings its own queries and keys. The table compares all queries with all keys; rank r
computes the rows of its own queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from clipkit.encoders import Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives.exchange import all_counts, gather_plain, gather_rows, rank

Exchange = Literal["gather", "ring"]


@dataclass(frozen=True)
class Spread:
    """How the table lies on the ranks.

    Attributes:
        query_counts, key_counts: every rank's number of queries and of keys.
        query_ids, key_ids: (Q,) and (K,) int64, all ranks', in rank order.
    """

    query_counts: list[int]
    key_counts: list[int]
    query_ids: Tensor
    key_ids: Tensor


@dataclass(frozen=True)
class Comparison:
    """What is compared with what; all tensors are this rank's part.

    Attributes:
        queries: (q, D), unit norm where the score is a cosine.
        keys: (k, D).
        query_ids: (q,) int64.
        key_ids: (k,) int64; a cell is a positive where the ids are equal, whichever ranks they come from.
        log_scale: (1,) log inverse temperature.
        bias: (1,) added to every score, or None.
        exchange: how keys reach the other ranks' queries: ``gather`` holds everybody's on every rank, ``ring`` hands
            them round (see ``clipkit.objectives.exchange``).
    """

    queries: Tensor
    keys: Tensor
    query_ids: Tensor
    key_ids: Tensor
    log_scale: Tensor
    bias: Tensor | None = None
    exchange: Exchange = "gather"

    @cached_property
    def spread(self) -> Spread:
        """Everybody's counts and ids; all ranks have to ask for it."""
        queries, keys = all_counts([len(self.query_ids), len(self.key_ids)], self.queries.device)
        if len(queries) == 1:
            return Spread(queries, keys, self.query_ids, self.key_ids)
        pairs = list(zip(queries, keys, strict=True))
        everyone = gather_plain(torch.cat([self.query_ids, self.key_ids]), [sum(pair) for pair in pairs])
        ids = everyone.split([n for pair in pairs for n in pair])
        return Spread(queries, keys, torch.cat(ids[0::2]), torch.cat(ids[1::2]))

    @property
    def own_keys(self) -> slice:
        """This rank's columns of the table."""
        first = sum(self.spread.key_counts[: rank()])
        return slice(first, first + len(self.keys))

    def scores(self, dtype: torch.dtype | None = None) -> Tensor:
        """(q, K) scores exp(log_scale) <query, key> + bias of this rank's queries with everybody's keys.

        In float32 (float64 for float64 input) under any autocast, differentiable across ranks.

        Args:
            dtype: of everything after the inner products; by default theirs. The gradients of scale and bias are sums
                over the whole table that all but cancel, and are then made in it too.
        """
        with torch.autocast(self.queries.device.type, enabled=False):
            queries, keys = widened(self.queries, gather_rows(self.keys, self.spread.key_counts))
            products = (queries @ keys.T).to(dtype or queries.dtype)
            scores = self.log_scale.to(dtype).exp().to(products.dtype) * products
            return scores if self.bias is None else scores + self.bias.to(products.dtype)

    def positives(self) -> Tensor:
        """(q, K) bool, True where query and key belong together."""
        return self.query_ids[:, None] == self.spread.key_ids[None, :]


def widened(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype of their scores: float64 if either is, float32 for everything else."""
    dtype = torch.float64 if torch.float64 in (queries.dtype, keys.dtype) else torch.float32
    return queries.to(dtype), keys.to(dtype)


def compare(embeddings: Embeddings, image_ids: Tensor, text_ids: Tensor, exchange: Exchange = "gather") -> Comparison:
    """Pictures as queries, texts as keys.

    Args:
        embeddings: this rank's images (B, D) and texts (T, D).
        image_ids: (B,) int64, this rank's.
        text_ids: (T,) int64, this rank's; equal ids are positives, wherever they come from.
        exchange: how texts reach the other ranks.

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
    return Comparison(images, texts, image_ids, text_ids, embeddings.log_scale, embeddings.bias, exchange)
