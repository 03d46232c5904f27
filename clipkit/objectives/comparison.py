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


NO_GROUP = -1


@dataclass(frozen=True)
class Spread:
    """How the table lies on the ranks.

    Attributes:
        query_counts, key_counts: every rank's number of queries and of keys.
        query_ids, key_ids: (Q,) and (K,) int64, all ranks', in rank order.
        key_groups: (K, G) int64, or None.
        key_shift: (K,), or None.
    """

    query_counts: list[int]
    key_counts: list[int]
    query_ids: Tensor
    key_ids: Tensor
    key_groups: Tensor | None = None
    key_shift: Tensor | None = None


@dataclass(frozen=True)
class Comparison:
    """What is compared with what; all tensors are this rank's part.

    The first six say what every cell's score is and which cells are positive. The rest are rules that most methods do
    without: which cells do not count, and further columns.

    Attributes:
        queries: (q, D), unit norm where the score is a cosine.
        keys: (k, D).
        query_ids: (q,) int64.
        key_ids: (k,) int64; a cell is a positive where the ids are equal, whichever ranks they come from.
        log_scale: (1,) log inverse temperature.
        bias: (1,) added to every score, or None.
        exchange: how keys reach the other ranks' queries: ``gather`` holds everybody's on every rank, ``ring`` hands
            them round (see ``clipkit.objectives.exchange``).
        itself: queries and keys are the same rows, this rank's i-th query is its i-th key: nothing is compared with
            itself, that cell is neither positive nor negative (SimCLR, SupCon: the views stacked).
        query_groups, key_groups: (q, G) and (k, G) int64. A cell of unequal ids does not count where the groups are
            equal in at least one column: copies and other false negatives, accidental hits. -1 is no group and equals
            nothing.
        key_shift: (k,) float, added to every score of that key after scale and bias, without a gradient: minus the
            logarithm of a key's probability of being in the batch is the logQ correction.
        queue: (M, D) further keys without a gradient, the same on every rank, of nobody's id: negatives of every query
            (MoCo's). As columns they do not count.

    Raises:
        ClipkitError: shapes that do not belong together.
    """

    queries: Tensor
    keys: Tensor
    query_ids: Tensor
    key_ids: Tensor
    log_scale: Tensor
    bias: Tensor | None = None
    exchange: Exchange = "gather"
    itself: bool = False
    query_groups: Tensor | None = None
    key_groups: Tensor | None = None
    key_shift: Tensor | None = None
    queue: Tensor | None = None

    def __post_init__(self) -> None:
        q, k = len(self.query_ids), len(self.key_ids)
        if self.itself and q != k:
            raise ClipkitError(f"itself=True with {q} queries and {k} keys: the same rows have to be on both sides")
        groups, others = self.query_groups, self.key_groups
        if (groups is None) != (others is None):
            raise ClipkitError("query_groups and key_groups: give both, or neither")
        if groups is not None and others is not None:
            alike = groups.ndim == others.ndim == 2 and groups.shape[1] == others.shape[1]
            if not alike or (len(groups), len(others)) != (q, k):
                raise ClipkitError(
                    f"query_groups {shape(groups)} and key_groups {shape(others)}: expected ({q}, G) and ({k}, G)"
                )
        if self.key_shift is not None and self.key_shift.shape != (k,):
            raise ClipkitError(f"key_shift {shape(self.key_shift)}: expected a number for each of {k} keys, ({k},)")
        if self.queue is not None and (self.queue.ndim != 2 or self.queue.shape[1] != self.keys.shape[1]):
            raise ClipkitError(f"queue {shape(self.queue)}: expected (M, {self.keys.shape[1]}), as the keys are")

    @cached_property
    def spread(self) -> Spread:
        """Everybody's counts, ids and rules; all ranks have to ask for it."""
        groups, shift = self.key_groups, None if self.key_shift is None else self.key_shift.detach()
        queries, keys = all_counts([len(self.query_ids), len(self.key_ids)], self.queries.device)
        if len(queries) == 1:
            return Spread(queries, keys, self.query_ids, self.key_ids, groups, shift)
        # All the integers go in one exchange: ids of both sides, then the groups a column after the other.
        columns = [] if groups is None else list(groups.unbind(1))
        pieces = [[q, *[k] * (1 + len(columns))] for q, k in zip(queries, keys, strict=True)]
        everyone = gather_plain(torch.cat([self.query_ids, self.key_ids, *columns]), [sum(piece) for piece in pieces])
        whole = everyone.split([n for piece in pieces for n in piece])
        query_ids, key_ids, *groups_K = (torch.cat(whole[i :: 2 + len(columns)]) for i in range(2 + len(columns)))
        if groups is not None:
            groups = torch.stack(groups_K, 1) if groups_K else groups.new_zeros(len(key_ids), 0)
        return Spread(queries, keys, query_ids, key_ids, groups, None if shift is None else gather_plain(shift, keys))

    @property
    def own_keys(self) -> slice:
        """This rank's columns of the table."""
        first = sum(self.spread.key_counts[: rank()])
        return slice(first, first + len(self.keys))

    def products(self, dtype: torch.dtype | None = None) -> Tensor:
        """(q, K + M) inner products of this rank's queries with everybody's keys and the queue.

        In float32 (float64 for float64 input) under any autocast, differentiable across ranks.

        Args:
            dtype: of the result; by default theirs.
        """
        with torch.autocast(self.queries.device.type, enabled=False):
            queries, keys = widened(self.queries, gather_rows(self.keys, self.spread.key_counts))
            if self.queue is not None:
                keys = torch.cat([keys, self.queue.detach().to(keys.dtype)])
            return (queries @ keys.T).to(dtype or queries.dtype)

    def scores(self, dtype: torch.dtype | None = None, biased: bool = True) -> Tensor:
        """(q, K + M) scores exp(log_scale) <query, key> + bias + key_shift.

        Args:
            dtype: of everything after the inner products; by default theirs. The gradients of scale and bias are sums
                over the whole table that all but cancel, and are then made in it too.
            biased: whether the bias is in them.
        """
        products = self.products(dtype)
        scores = self.log_scale.to(dtype).exp().to(products.dtype) * products
        if biased and self.bias is not None:
            scores = scores + self.bias.to(products.dtype)
        if self.spread.key_shift is not None:
            scores = scores + self._beside_queue(self.spread.key_shift.to(scores.dtype))
        return scores

    def positives(self) -> Tensor:
        """(q, K + M) bool, True where query and key belong together."""
        return self._beside_queue(self.query_ids[:, None] == self.spread.key_ids[None, :]) & ~self._selves()

    def negatives(self) -> Tensor:
        """(q, K + M) bool, True where they do not and the cell counts."""
        return self.counts() & ~self.positives()

    def counts(self) -> Tensor:
        """(q, K + M) bool, True where a cell counts, as a positive or as a negative."""
        return ~(self._selves() | self._beside_queue(self._guarded(slice(None))))

    def cleared(self) -> int:
        """How many cells of the whole table the groups removed, on all ranks; all ranks have to ask for it."""
        rows = max(1, (1 << 22) // max(len(self.spread.key_ids), 1))
        pieces = [slice(i, i + rows) for i in range(0, len(self.query_ids), rows)]
        return sum(all_counts([sum(int(self._guarded(p).sum()) for p in pieces)], self.queries.device)[0])

    def _guarded(self, rows: slice) -> Tensor:
        """(r, K) bool: unequal ids, but a group in common. What is compared with itself is not among them."""
        ids, others = self.query_ids[rows], self.spread.key_ids
        if self.query_groups is None or self.spread.key_groups is None:
            return ids.new_zeros(len(ids), len(others), dtype=torch.bool)
        alike = in_common(self.query_groups[rows], self.spread.key_groups) & (ids[:, None] != others[None, :])
        return alike & ~self._selves()[rows, : len(others)] if self.itself else alike

    def _selves(self) -> Tensor:
        """(q, K + M) bool: what is compared with itself."""
        selves = self.query_ids.new_zeros(len(self.query_ids), len(self.spread.key_ids), dtype=torch.bool)
        if self.itself:
            selves[:, self.own_keys].fill_diagonal_(True)
        return self._beside_queue(selves)

    def _beside_queue(self, x: Tensor) -> Tensor:
        """``x`` (..., K) with zeros (False) for the queue, (..., K + M)."""
        return x if self.queue is None else torch.cat([x, x.new_zeros(*x.shape[:-1], len(self.queue))], -1)


def in_common(groups: Tensor, others: Tensor) -> Tensor:
    """(r, c) bool: where ``groups`` (r, G) and ``others`` (c, G) are equal in a column, and are groups at all."""
    alike = groups.new_zeros(len(groups), len(others), dtype=torch.bool)
    for group, other in zip(groups.unbind(1), others.unbind(1), strict=True):
        alike |= (group[:, None] == other[None, :]) & (group != NO_GROUP)[:, None]
    return alike


def widened(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the dtype of their scores: float64 if either is, float32 for everything else."""
    dtype = torch.float64 if torch.float64 in (queries.dtype, keys.dtype) else torch.float32
    return queries.to(dtype), keys.to(dtype)


def shape(x: Tensor | None) -> tuple[int, ...] | None:
    """As an error message gives it."""
    return None if x is None else tuple(x.shape)


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
