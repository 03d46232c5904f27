"""Exact search: a scan in float32, and everything that its rounding leaves open decided in float64.

A sum of D products in float32 is off by at most D·2⁻²⁴/(1 - D·2⁻²⁴) times the norms (Higham, Accuracy and Stability of
Numerical Algorithms, 2002, section 3.1). So every row whose float32 score is within twice that of the n-th best may be
among the n best, and no other: those are scored again in float64. A burst of a thousand near-duplicates is ordered
rightly, and the answer depends neither on the blocks nor on how many queries are asked at once.

A scan in fewer bits, with its own proven bound, would read less memory. It is not done because it is slower where it
was measured, see ``benchmarks/search.py``.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]

_CELLS = 4_194_304  # scores held at a time
_BLOCK = 65_536  # rows scored at a time, at most
_GATHER = 4096  # rows scored again at a time
_LEAST = np.finfo(np.float32).min


class VectorSearch(Protocol):
    """Finds the nearest of N unit-norm vectors: what an ``Index`` searches with.

    Attributes:
        name: ``exact``, ``faiss`` or ``milvus``.
    """

    name: str

    def search(self, queries: Floats, n: int, allowed: Mask | None = None) -> tuple[Floats, Rows]:
        """The n nearest vectors of each query by inner product, best first, the first row of equal ones first.

        Args:
            queries: float32 (Q, D).
            n: how many, at least 1.
            allowed: bool (N,), the rows that may be found; None for all.

        Returns:
            Scores float32 (Q, m) and rows int64 (Q, m) with m the lesser of n and what is allowed; a vector that holds
            NaN or infinity is never found.
        """
        ...


class ExactSearch:
    """The n best, always: see the top of this file.

    Args:
        embeddings: float32 (N, D), in memory or mapped; read in blocks.
    """

    name = "exact"

    def __init__(self, embeddings: Floats) -> None:
        self.embeddings = embeddings

    def search(self, queries: Floats, n: int, allowed: Mask | None = None) -> tuple[Floats, Rows]:
        """See ``VectorSearch``."""
        width = self.embeddings.shape[1]
        unit = width * 2.0**-24
        doubt = (
            2.002 * unit / (1 - unit) * np.linalg.norm(queries.astype(np.float64), axis=1)
        )  # both sides, norms near 1
        wanted = min(n, len(self.embeddings) if allowed is None else int(allowed.sum()))
        best = [_Best(wanted, float(margin)) for margin in doubt]
        size = max(1024, min(_BLOCK, _CELLS // max(1, len(queries))))
        for start in range(0, len(self.embeddings) if wanted else 0, size):
            block = self.embeddings[start : start + size]
            rows = None if allowed is None else np.flatnonzero(allowed[start : start + size])
            if rows is not None:
                if not len(rows):
                    continue
                block = block[rows] if len(rows) < len(block) else block
            scores = (block @ queries[0])[None] if len(queries) == 1 else queries @ block.T
            for own, of_query in zip(best, scores, strict=True):
                own.add(of_query, start, rows)
        found = [rescore(self.embeddings, q, own.rows(), wanted) for q, own in zip(queries, best, strict=True)]
        m = min((len(rows) for _, rows in found), default=wanted)  # the same for all queries
        shape = (len(queries), m)
        return (
            np.array([s[:m] for s, _ in found], dtype=np.float32).reshape(shape),
            np.array([r[:m] for _, r in found], dtype=np.int64).reshape(shape),
        )


class _Best:
    """Every row that may be one of the n best of a query, given how far off its score may be."""

    def __init__(self, n: int, margin: float) -> None:
        self.n, self.margin = n, margin
        self.floor = float(_LEAST)
        self._scores: list[Floats] = []
        self._rows: list[Rows] = []
        self._held = 0

    def add(self, scores: Floats, start: int, rows: Rows | None) -> None:
        """Scores of the rows from ``start``, or of ``rows`` counted from there."""
        places = np.flatnonzero(scores >= self.floor)
        places = places[np.isfinite(scores[places])]
        if not len(places):
            return
        self._scores.append(scores[places])
        self._rows.append(start + (places if rows is None else rows[places]))
        self._held += len(places)
        if self._held >= self.n:
            self._raise_floor()

    def _raise_floor(self) -> None:
        scores, rows = np.concatenate(self._scores), np.concatenate(self._rows)
        nth = np.partition(scores, len(scores) - self.n)[len(scores) - self.n]
        self.floor = float(nth) - self.margin
        stay = scores >= self.floor
        self._scores, self._rows, self._held = [scores[stay]], [rows[stay]], int(stay.sum())

    def rows(self) -> Rows:
        return np.concatenate(self._rows) if self._rows else np.zeros(0, dtype=np.int64)


def rescore(embeddings: Floats, query: Floats, rows: Rows, n: int) -> tuple[Floats, Rows]:
    """The n best of ``rows`` (ascending) with their scores, computed in float64 and rounded once."""
    exact = query.astype(np.float64)
    parts = [rows[i : i + _GATHER] for i in range(0, len(rows), _GATHER)]
    scores = np.concatenate([embeddings[p].astype(np.float64) @ exact for p in parts]) if parts else np.zeros(0)
    rounded = scores.astype(np.float32)
    order = np.argsort(-rounded, kind="stable")[:n]  # equal ones stay in the order of their rows
    return rounded[order], rows[order]
