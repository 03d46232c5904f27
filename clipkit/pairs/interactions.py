"""Who chose what: interactions of users with items, as pairs of the rows of two tables.

A user and an item are rows of integer codes, the first of them their own number, the others their features; 0 stands
for what was not seen in training. Each interaction is a sample, its user the query and its item the key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipkit.pairs.batch import PairBatch
from clipkit.pairs.rows import RowSet
from clipkit.pairs.shards import ShardSet

CHOSEN = 64  # items of a user, besides the one of the row, that are kept from being its negatives


@dataclass(frozen=True)
class CodeTable:
    """Users, or items.

    Attributes:
        names: of the rows, N.
        codes: (N, F) int64; column 0 is the row's own number, from 1; in every column 0 is the unknown.
        columns: names of the F columns.
        values: of each column, what its codes 1, 2, ... stand for.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int64]
    columns: tuple[str, ...]
    values: tuple[tuple[str, ...], ...]

    @property
    def sizes(self) -> list[int]:
        """Codes of each column, the unknown included."""
        return [len(values) + 1 for values in self.values]


class InteractionSet(RowSet):
    """Interactions of one split.

    Args:
        name: the file that they come from.
        users, items: the tables.
        user_N, item_N: (N,) int64 rows of the tables, of each interaction.
        seen: for each user the items of its training interactions.
        share_I: (I,) share of each item among the training interactions: the probability that a key of a batch is it.
    """

    def __init__(
        self,
        name: str,
        users: CodeTable,
        items: CodeTable,
        user_N: NDArray[np.int64],
        item_N: NDArray[np.int64],
        seen: Sequence[NDArray[np.int64]],
        share_I: NDArray[np.float64],
    ) -> None:
        texts = [(f"{users.names[u]} {items.names[i]}",) for u, i in zip(user_N, item_N, strict=True)]
        super().__init__(name, texts)
        self.users, self.items = users, items
        self.user_N, self.item_N = user_N, item_N
        self.seen, self.share_I = seen, share_I


def read_user(shards: ShardSet, sample: int, seed: int) -> Tensor:
    """Codes of an interaction's user, int64 (F,)."""
    assert isinstance(shards, InteractionSet)
    return torch.from_numpy(shards.users.codes[shards.user_N[sample]])


@dataclass(frozen=True)
class ReadItems:
    """Codes of a batch's items, int64 (b, F)."""

    shards: InteractionSet

    def __call__(self, chosen: list[tuple[int, int, str]]) -> Tensor:
        return torch.from_numpy(self.shards.items.codes[self.shards.item_N[[sample for sample, _, _ in chosen]]])


@dataclass(frozen=True)
class Corrected:
    """Gives a batch what makes it a fair sample of all items.

    A popular item is often a key, and would be pushed away as often: minus the logarithm of its share is added to its
    scores (logQ; Bengio & Senécal 2008, Yi et al. 2019). An item that the query's user has chosen too is no negative,
    whoever's interaction brought it into the batch: it is grouped with the user. That holds for the row's own item
    always, and of a user with more than ``CHOSEN`` items for the most popular, which are the likeliest to come.
    """

    shards: InteractionSet

    def __call__(self, batch: PairBatch) -> PairBatch:
        user_B, item_B = (rows[batch.image_ids.numpy()] for rows in (self.shards.user_N, self.shards.item_N))
        chosen_BS = np.concatenate([self._chosen[user_B], item_B[:, None]], axis=1)
        return replace(
            batch,
            image_groups=torch.from_numpy(chosen_BS),
            text_groups=torch.from_numpy(np.repeat(item_B[:, None], chosen_BS.shape[1], axis=1)),
            text_shift=torch.from_numpy(-np.log(self.shards.share_I[item_B])).float(),
        )

    @cached_property
    def _chosen(self) -> NDArray[np.int64]:
        """(U, S) items of each user in training, the most popular first; -1 where there are no more."""
        share, seen = self.shards.share_I, self.shards.seen
        width = max(1, min(CHOSEN, max(map(len, seen), default=0)))
        chosen = np.full((len(seen), width), -1, dtype=np.int64)
        for user, items in enumerate(seen):
            most = items[np.argsort(-share[items], kind="stable")[:width]]
            chosen[user, : len(most)] = most
        return chosen
