"""Which pictures are copies of one another: equal bytes, equal to the eye, or near in a model's space."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from data_prep.looks import near_copies
from data_prep.stage import Facts

_BLOCK = 2048  # rows of embeddings that are compared with all others at a time


class Components:
    """Sets of places that belong together (union-find); a set goes by its first place."""

    def __init__(self, n: int) -> None:
        self._parent = list(range(n))

    def join(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Put the sets of each pair's places together."""
        for a, b in pairs:
            a, b = self.first(a), self.first(b)
            self._parent[max(a, b)] = min(a, b)

    def first(self, place: int) -> int:
        """The first place of the set that ``place`` is in."""
        while self._parent[place] != place:
            self._parent[place] = self._parent[self._parent[place]]
            place = self._parent[place]
        return place

    def firsts(self) -> NDArray[np.int64]:
        """int64 (n,): the first place of each place's set."""
        return np.array([self.first(place) for place in range(len(self._parent))], dtype=np.int64)


def equal_pairs(values: Iterable[object]) -> list[tuple[int, int]]:
    """(first place, place) of every value that was there before; None equals nothing."""
    seen: dict[object, int] = {}
    pairs = []
    for place, value in enumerate(values):
        if value is not None and seen.setdefault(value, place) != place:
            pairs.append((seen[value], place))
    return pairs


def copy_pairs(facts: Facts, near: bool) -> list[tuple[int, int]]:
    """Pairs of rows that are copies: equal bytes, and with ``near`` also equal to the eye. Bad rows are no one's."""
    (rows,) = facts["good"].nonzero()
    contents = [content.tobytes() for content in facts["content"][rows]]
    pairs = equal_pairs(contents)
    if near:
        pairs += near_copies(facts["phash"][rows], facts["tiny"][rows])
    return [(int(rows[a]), int(rows[b])) for a, b in pairs]


def embedding_pairs(embedding_ND: NDArray[np.float32], threshold: float) -> list[tuple[int, int]]:
    """Pairs of rows (earlier, later) whose cosine similarity is at least ``threshold``.

    Args:
        embedding_ND: float32 (N, D), unit norm; a row of zeros is near no other. N² D multiplications: for some
            100,000 pictures.
    """
    pairs = []
    for start in range(0, len(embedding_ND), _BLOCK):
        block = embedding_ND[start : start + _BLOCK]
        scores = block @ embedding_ND[: start + len(block)].T
        near = scores >= threshold
        near &= np.arange(near.shape[1])[None, :] < np.arange(start, start + len(block))[:, None]
        for row, other in zip(*near.nonzero(), strict=True):
            pairs.append((int(other), start + int(row)))
    return pairs
