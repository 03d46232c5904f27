"""Search through a library (faiss, milvus): it proposes, the index decides.

A library returns more rows than are wanted; these are scored again from the embeddings, so scores and order are exact
among what was proposed. How many of the true best it proposes is measured when the index is made, and kept with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.inference.exact import ExactSearch, Floats, Mask, Rows, VectorSearch, rescore

BACKENDS = ("exact", "faiss", "milvus")
LARGE = 1_000_000  # vectors from which faiss is chosen, where it is installed
_SPARE = 4  # rows proposed for each one that is wanted
_FEW = 16_384  # allowed rows that are scanned at once instead
_QUERIES, _K, _TARGET = 100, 10, 0.98  # of the measurement, and the recall that is tried for


class Library(Protocol):
    """Proposes rows near to queries.

    Attributes:
        name: of the backend.
        most: rows that it proposes at most for a query.
    """

    name: str
    most: int

    def candidates(self, queries: Floats, n: int, allowed: Mask | None) -> Rows:
        """int64 (Q, m) rows, m at most n, all of them ``allowed``; -1 for none.

        Args:
            queries: float32 (Q, D).
            n: at most ``most``.
            allowed: bool (N,), or None for all.
        """
        ...

    def widen(self) -> bool:
        """Look at more rows for each query from now on; False where that is not possible."""
        ...

    def describe(self) -> dict[str, Any]:
        """What ``open_search`` needs to find it again, as plain JSON."""
        ...


class ApproximateSearch:
    """A ``VectorSearch`` through a library; exact where few rows are allowed or where it proposes too few."""

    def __init__(self, embeddings: Floats, library: Library) -> None:
        self.embeddings, self.library = embeddings, library
        self.name = library.name
        self._exact = ExactSearch(embeddings)

    def search(self, queries: Floats, n: int, allowed: Mask | None = None) -> tuple[Floats, Rows]:
        """See ``VectorSearch``."""
        there = len(self.embeddings) if allowed is None else int(allowed.sum())
        wanted = min(n, there)
        proposed = _SPARE * wanted
        if there <= proposed or (allowed is not None and there <= _FEW) or proposed > self.library.most:
            return self._exact.search(queries, n, allowed)
        rows = self.library.candidates(queries, proposed, allowed)
        found = [
            rescore(self.embeddings, q, np.unique(own[own >= 0]), wanted) for q, own in zip(queries, rows, strict=True)
        ]
        scores = np.full((len(queries), wanted), -np.inf, dtype=np.float32)
        best = np.full((len(queries), wanted), -1, dtype=np.int64)
        for i, (own_scores, own_rows) in enumerate(found):
            if len(own_rows) == wanted:
                scores[i], best[i] = own_scores, own_rows
        short = np.flatnonzero(best[:, 0] < 0) if wanted else np.zeros(0, dtype=np.int64)
        if len(short):
            scores[short], best[short] = self._exact.search(queries[short], n, allowed)
        return scores, best


def choose(backend: str | None, n: int) -> str:
    """The backend for n vectors: what is asked for, or by their number: faiss from a million, if it is installed.

    Raises:
        ClipkitError: there is no such backend.
    """
    from importlib.util import find_spec

    if backend is None:
        return "faiss" if n >= LARGE and find_spec("faiss") is not None else "exact"
    if backend not in BACKENDS:
        raise ClipkitError(f"no backend is called {backend!r}; there are {', '.join(BACKENDS)}")
    return backend


def build_search(
    backend: str, folder: Path, name: str, embeddings: Floats, queries: Floats, uri: str | None
) -> dict[str, Any]:
    """Make what ``backend`` searches with, under ``name``, and measure it.

    Args:
        folder: of the index.
        embeddings: float32 (N, D), unit norm.
        queries: float32 (Q, D), other queries to measure with than pictures of the index; may be none.
        uri: of milvus: of a server, or a file; by default ``milvus.db`` in the folder.

    Returns:
        What ``open_search`` needs, as plain JSON, with ``recall``: the share of the exact 10 best that it finds.

    Raises:
        ClipkitError: the library is not installed, or does not answer.
    """
    made = _library(backend).build(folder, name, embeddings, uri)
    search = ApproximateSearch(embeddings, made)
    draw = np.random.default_rng(0)
    sample = np.sort(draw.choice(len(embeddings), min(_QUERIES, len(embeddings)), replace=False))
    asked = np.concatenate([embeddings[sample], queries[:_QUERIES]])
    best = ExactSearch(embeddings).search(asked, _K)[1]
    recall = 0.0
    while True:
        found = search.search(asked, _K)[1]
        recall = float(np.mean([np.isin(a, b).mean() for a, b in zip(best, found, strict=True)]))
        if recall >= _TARGET or not made.widen():
            break
    return {**made.describe(), "recall": round(recall, 4), "k": _K, "queries": len(asked)}


def open_search(folder: Path, description: dict[str, Any] | None, embeddings: Floats) -> VectorSearch:
    """The search that ``build_search`` described; the exact one for None.

    Raises:
        ClipkitError: the library is not installed, or what it searches with is gone.
    """
    if description is None:
        return ExactSearch(embeddings)
    return ApproximateSearch(embeddings, _library(description["backend"]).open(folder, description, len(embeddings)))


def forget_search(folder: Path, descriptions: Iterable[dict[str, Any]]) -> None:
    """Remove what an earlier index in ``folder`` was searched with, where its library is installed."""
    for description in descriptions:
        with suppress(ClipkitError):
            _library(description["backend"]).forget(folder, description)


def _library(backend: str) -> Any:
    """The class of a ``Library``.

    Raises:
        ClipkitError: its package is not installed.
    """
    try:
        if backend == "faiss":
            from clipkit.inference.with_faiss import Faiss

            return Faiss
        from clipkit.inference.with_milvus import Milvus

        return Milvus
    except ModuleNotFoundError as error:
        raise ClipkitError(
            f"{error.name} is not installed; pip install 'clipkit[{backend}]', or choose exact"
        ) from None
