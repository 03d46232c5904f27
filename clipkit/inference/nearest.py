"""The nearest items of queries, by their pictures, by their captions, or by whichever is nearer."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.inference.exact import Floats, Mask, Rows, VectorSearch

By = Literal["picture", "caption", "either"]
WAYS = ("picture", "caption", "either")


class Found(NamedTuple):
    """The nearest items of a query, best first, the first row of equal ones first.

    Attributes:
        scores: float32 (n,).
        rows: int64 (n,).
        captions: int64 (n,), which of the item's captions it was found by; -1 for its picture.
    """

    scores: Floats
    rows: Rows
    captions: Rows


class Captions:
    """The captions of an index as vectors, several to an item.

    Args:
        vectors: finds them; their order is that of the items.
        owners: int64 (M,) ascending, the row of each one's item.
    """

    def __init__(self, vectors: VectorSearch, owners: Rows) -> None:
        self.vectors, self.owners = vectors, owners
        starts = np.flatnonzero(np.diff(owners, prepend=-1))
        self._start_of = np.repeat(starts, np.diff(starts, append=len(owners)))
        self._most = int(np.diff(starts, append=len(owners)).max()) if len(owners) else 0

    def search(self, queries: Floats, n: int, allowed: Mask | None) -> list[Found]:
        """The n items with the nearest captions: an item's score is that of its nearest one.

        With at most c captions an item, the n-th best item has a caption among the best (n - 1)·c + 1.
        """
        if not len(self.owners):
            none = np.zeros(0, dtype=np.int64)
            return [Found(np.zeros(0, dtype=np.float32), none, none) for _ in queries]
        chosen = None if allowed is None else allowed[self.owners]
        scores, places = self.vectors.search(queries, (n - 1) * self._most + 1, chosen)
        found = []
        for own_scores, own in zip(scores, places, strict=True):
            rows = self.owners[own]
            first = np.sort(np.unique(rows, return_index=True)[1])[:n]
            found.append(Found(own_scores[first], rows[first], (own - self._start_of[own])[first]))
        return found


def nearest(
    pictures: VectorSearch, captions: Captions | None, queries: Floats, n: int, allowed: Mask | None, by: By
) -> list[Found]:
    """The n nearest items of each query.

    Args:
        queries: float32 (Q, D).
        allowed: bool (N,), the items that may be found; None for all.
        by: what of an item is compared; ``either`` takes the larger similarity.

    Raises:
        ClipkitError: another ``by``, or no captions to search.
    """
    if by not in WAYS:
        raise ClipkitError(f"by is {by!r}; it is one of {', '.join(WAYS)}")
    if by != "picture" and captions is None:
        raise ClipkitError(f"by={by}: the index holds no captions to search; make it with clipkit index --captions")
    found = []
    if by != "caption":
        for scores, rows in zip(*pictures.search(queries, n, allowed), strict=True):
            found.append(Found(scores, rows, np.full(len(rows), -1)))
    if by == "picture" or captions is None:
        return found
    told = captions.search(queries, n, allowed)
    return told if by == "caption" else [_larger(a, b, n) for a, b in zip(found, told, strict=True)]


def _larger(one: Found, other: Found, n: int) -> Found:
    """The n best of both, each item once with its larger score.

    An item that is among the n best is so in the list that its larger score comes from.
    """
    scores, rows, captions = (np.concatenate([one[i], other[i]]) for i in range(3))
    order = np.lexsort((rows, -scores))
    order = order[np.sort(np.unique(rows[order], return_index=True)[1])[:n]]
    return Found(scores[order], rows[order], captions[order])
