"""Pictures that look alike: groups of a whole index, and what stands behind a hit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clipkit.inference.exact import Floats, Mask, Rows

_TILE = 2048
_BLOCK = 65_536


def leaders(embeddings: Floats, rows: list[int], threshold: float, k: int) -> list[int]:
    """The first k of ``rows`` whose cosine similarity with every earlier one of them is below ``threshold``."""
    shown: list[int] = []
    for row in rows:
        if not shown or (embeddings[shown] @ embeddings[row]).max() < threshold:
            shown.append(row)
            if len(shown) == k:
                break
    return shown


def count_behind(embeddings: Floats, shown: list[int], threshold: float, allowed: Mask | None) -> list[int]:
    """How many pictures stand behind each of ``shown``: are not shown, and are like it and like no better one.

    Args:
        embeddings: float32 (N, D), unit norm.
        shown: rows, best first.
        threshold: cosine similarity from which two pictures are alike.
        allowed: bool (N,), the rows that count; None for all.
    """
    counts = np.zeros(len(shown) + 1, dtype=np.int64)
    leading = embeddings[shown]
    for start in range(0, len(embeddings) if shown else 0, _BLOCK):
        alike = embeddings[start : start + _BLOCK] @ leading.T >= threshold
        first = np.where(alike.any(axis=1), alike.argmax(axis=1), len(shown))
        if allowed is not None:
            first[~allowed[start : start + _BLOCK]] = len(shown)
        inside = [row - start for row in shown if start <= row < start + _BLOCK]
        first[inside] = len(shown)
        counts += np.bincount(first, minlength=len(shown) + 1)
    return counts[:-1].tolist()


def connected(embeddings: Floats, threshold: float) -> Rows:
    """int64 (N,): for each picture the first row of its group.

    Two pictures are in a group if a chain of pictures joins them, each with a cosine similarity of at least
    ``threshold`` with the next: the components of a graph, so the answer depends on no order. Every pair is compared,
    a tile at a time: N²·D products.
    """
    n = len(embeddings)
    group = np.arange(n)
    for top in range(0, n, _TILE):
        rows = embeddings[top : top + _TILE]
        for left in range(top, n, _TILE):
            one, other = np.nonzero(rows @ embeddings[left : left + _TILE].T >= threshold)
            group = _joined(group, one + top, other + left)
    return group


def _joined(group: Rows, one: Rows, other: Rows) -> Rows:
    """``group`` after the groups of the pairs (``one``, ``other``) have become one; a group is named by its first."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    a, b = group[one], group[other]
    if not (a != b).any():
        return group
    n = len(group)
    pairs: NDArray[np.int64] = np.unique((np.minimum(a, b) * n + np.maximum(a, b))[a != b])
    edges = coo_matrix((np.ones(len(pairs), dtype=np.bool_), (pairs // n, pairs % n)), shape=(n, n))
    labels = connected_components(edges, directed=False)[1]
    first = np.full(int(labels.max()) + 1, n)
    np.minimum.at(first, labels, np.arange(n))
    return first[labels][group]
