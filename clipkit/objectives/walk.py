"""The walk over the comparison table in tiles, so that no more than a tile of it ever exists.

A tile is some of this rank's queries against some of everybody's keys. An objective visits every tile, reads its
scores, and in a pass that makes gradients puts the gradient of every score back into the queries' and keys'
gradients. Memory is O(Q D + K D + tile), never O(Q K).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.objectives.cells import Places, cut, equal, guarded, matches, with_selves, without_selves
from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import Gathered, Ring
from clipkit.objectives.tile import Tile, Tiling

SMALL = 1 << 16  # cells of a table for which float64 costs next to nothing

_Cells = TypeVar("_Cells", bound="Places | Tensor | None")


class Walk:
    """What stays the same in all passes over one table.

    Args:
        comparison: the table.
        tiling: how it is cut.
    """

    def __init__(self, comparison: Comparison, tiling: Tiling | None = None) -> None:
        self.spread = comparison.spread
        self.queue = None if comparison.queue is None else comparison.queue.detach()
        self.n_queries = len(self.spread.query_ids)
        self.n_keys = len(self.spread.key_ids) + (0 if self.queue is None else len(self.queue))  # of a row
        self.tiling = tiling or Tiling.of(comparison.queries.device, 4 * len(comparison.queries) * self.n_keys)
        self.exchange = comparison.exchange
        self.query_ids = comparison.query_ids
        self.query_groups = comparison.query_groups
        self.own_keys = comparison.own_keys
        self.itself = comparison.itself
        self._positives: dict[tuple[int, int], Places | None] = {}
        self._excluded: dict[tuple[int, int], Places | Tensor | None] = {}

    @property
    def excludes(self) -> bool:
        """Whether there may be cells that do not count."""
        return self.itself or self.query_groups is not None

    def positive_counts(self) -> tuple[Tensor, Tensor]:
        """How many positives each of this rank's rows (q,) and each of everybody's columns (K,) has, int64."""
        spread = self.spread
        rows, columns = matches(self.query_ids, spread.key_ids), matches(spread.key_ids, spread.query_ids)
        if self.itself:
            rows -= (self.query_ids == spread.key_ids[self.own_keys]).to(rows.dtype)
            columns -= (spread.query_ids == spread.key_ids).to(columns.dtype)
        return rows, columns

    def keys(self, keys: Tensor, everyone: Tensor | None = None) -> Gathered | Ring:
        """The blocks of keys (k, D) that the queries are compared with."""
        if self.exchange == "ring":
            return Ring(keys, self.spread.key_counts)
        return Gathered(keys, self.spread.key_counts, everyone)

    def buffer(self, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Room for a tile, flat, in ``dtype`` or in that of ``like``."""
        rows = min(self.tiling.rows, len(self.query_ids))
        columns = min(self.tiling.columns, max(self.spread.key_counts, default=0))
        if self.exchange == "gather":
            columns = min(self.tiling.columns, len(self.spread.key_ids))
        if self.queue is not None:
            columns = max(columns, min(self.tiling.columns, len(self.queue)))
        return like.new_empty(rows * columns, dtype=dtype)

    def tiles(
        self,
        queries: Tensor,
        keys: Gathered | Ring,
        grad_queries: Tensor | None = None,
        grad_keys: bool = False,
    ) -> Iterator[Tile]:
        """Every tile of the table once.

        Args:
            queries: (q, D), this rank's.
            keys: the blocks of keys.
            grad_queries: (q, D) where the queries' gradients are added up, or None.
            grad_keys: whether the keys' gradients are wanted; ``keys.grad()`` has them at the end.
        """
        rows_of = list(cut(self.query_ids, self.tiling.rows))
        shift = self.spread.key_shift
        for first, block, block_grad in keys.blocks(grad_keys):
            columns_of = list(cut(self.spread.key_ids[first : first + len(block)], self.tiling.columns))
            for rows, query_ids, query_range in rows_of:
                for columns, key_ids, key_range in columns_of:
                    whole = slice(first + columns.start, first + columns.stop)
                    disjoint = query_range[1] < key_range[0] or key_range[1] < query_range[0]
                    yield Tile(
                        rows,
                        whole,
                        queries[rows],
                        block[columns],
                        None if disjoint else self._positives_of(rows, whole, query_ids, key_ids),
                        None if grad_queries is None else grad_queries[rows],
                        None if block_grad is None else block_grad[columns],
                        self._excluded_of(rows, whole, query_ids, key_ids) if self.excludes else None,
                        None if shift is None else shift[whole].to(block.dtype),
                    )
        yield from self._queue_tiles(queries, grad_queries)

    def _queue_tiles(self, queries: Tensor, grad_queries: Tensor | None) -> Iterator[Tile]:
        if self.queue is None:
            return
        first = len(self.spread.key_ids)
        for start in range(0, len(self.queue), self.tiling.columns):
            keys = self.queue[start : start + self.tiling.columns].to(queries.dtype)
            columns = slice(first + start, first + start + len(keys))
            for i in range(0, len(queries), self.tiling.rows):
                rows = slice(i, min(i + self.tiling.rows, len(queries)))
                grad = None if grad_queries is None else grad_queries[rows]
                yield Tile(rows, columns, queries[rows], keys, None, grad, None, queued=True)

    def places(self, rows: slice) -> tuple[Places | None, Places | Tensor | None]:
        """The positives of some rows and their cells that do not count, among all K columns."""
        ids, key_ids, columns = self.query_ids[rows], self.spread.key_ids, slice(0, len(self.spread.key_ids))
        return self._positives_of(rows, columns, ids, key_ids), self._excluded_of(rows, columns, ids, key_ids)

    def _positives_of(self, rows: slice, columns: slice, query_ids: Tensor, key_ids: Tensor) -> Places | None:
        def find() -> Places | None:
            places = equal(query_ids, key_ids)
            return without_selves(places, self._diagonal(rows, columns)) if self.itself else places

        return _remembered(self._positives, rows, columns, find)

    def _excluded_of(self, rows: slice, columns: slice, query_ids: Tensor, key_ids: Tensor) -> Places | Tensor | None:
        def find() -> Places | Tensor | None:
            cells: Places | Tensor | None = None
            if self.query_groups is not None and self.spread.key_groups is not None:
                cells = guarded(query_ids, key_ids, self.query_groups[rows], self.spread.key_groups[columns])
            if not self.itself:
                return cells
            return with_selves(cells, self._diagonal(rows, columns), (len(query_ids), len(key_ids)), query_ids)

        return _remembered(self._excluded, rows, columns, find)

    def _diagonal(self, rows: slice, columns: slice) -> int:
        """Column less row, within a tile, of what is compared with itself."""
        return rows.start + self.own_keys.start - columns.start


def _remembered(
    memory: dict[tuple[int, int], _Cells], rows: slice, columns: slice, find: Callable[[], _Cells]
) -> _Cells:
    """What ``find`` finds, kept for the next pass while it is little; with labels it may be as much as the table."""
    place = rows.start, columns.start
    if place in memory:
        return memory[place]
    found = find()
    few = rows.stop - rows.start + columns.stop - columns.start
    if found is None or (isinstance(found, tuple) and len(found[0]) <= few):
        memory[place] = found
    return found


def refuse_create_graph() -> None:
    """Called in a backward pass: its result has no graph, so that a gradient's gradient would silently be 0."""
    if torch.is_grad_enabled():
        raise ClipkitError(
            "create_graph=True: a tiled loss has no second derivative; clipkit.objectives.dense has, on one process"
        )


@contextmanager
def exact_scores(device: torch.device) -> Iterator[None]:
    """Matrix products in full float32: without autocast, and without tf32 on CUDA, whatever the process has set."""
    with torch.autocast(device.type, enabled=False), _without_tf32() if device.type == "cuda" else nullcontext():
        yield


@contextmanager
def _without_tf32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        yield
    finally:
        setattr(matmul, name, before)
