"""The walk over the comparison table in tiles, so that no more than a tile of it ever exists.

A tile is some of this rank's queries against some of everybody's keys. An objective visits every tile, reads its
scores, and in a pass that makes gradients puts the gradient of every score back into the queries' and keys'
gradients. Memory is O(Q D + K D + tile), never O(Q K).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import Gathered, Ring

SMALL = 1 << 16  # cells of a table for which float64 costs next to nothing


@dataclass(frozen=True)
class Tiling:
    """How the table is cut.

    Attributes:
        rows, columns: of a tile.
        keep_bytes: inner products of the forward pass that are kept for the backward pass, up to so many bytes; the
            others are computed again.
    """

    rows: int = 1024
    columns: int = 1024
    keep_bytes: int = 256 << 20

    @classmethod
    def of(cls, device: torch.device, table_bytes: int) -> Tiling:
        """Tiles that a CPU's caches hold, or that keep an accelerator busy. The table is kept if all of it fits: a
        part would cost as much memory and save next to nothing."""
        tiling = cls() if device.type == "cpu" else cls(4096, 8192, 1 << 30)
        return tiling if table_bytes <= tiling.keep_bytes else replace(tiling, keep_bytes=0)


@dataclass(frozen=True)
class Tile:
    """A piece of the table.

    Attributes:
        rows: of this rank's queries.
        columns: of everybody's keys.
        queries, keys: (r, D) and (c, D).
        positives: row and column within the tile of each positive cell, (n,) int64 each; None where there is none.
        grad_queries, grad_keys: (r, D) and (c, D) places where gradients are added up, or None.
    """

    rows: slice
    columns: slice
    queries: Tensor
    keys: Tensor
    positives: tuple[Tensor, Tensor] | None
    grad_queries: Tensor | None
    grad_keys: Tensor | None

    def products(self, out: Tensor | None = None) -> Tensor:
        """(r, c) inner products of queries and keys, into the first cells of ``out`` if it is given."""
        room = None if out is None else self.room(out)
        return torch.mm(self.queries, self.keys.T, out=room)

    def room(self, buffer: Tensor) -> Tensor:
        """The first cells of a flat ``buffer`` as (r, c)."""
        shape = len(self.queries), len(self.keys)
        return buffer[: shape[0] * shape[1]].view(shape)

    def table_positives(self) -> tuple[Tensor, Tensor]:
        """Row among this rank's queries and column among everybody's keys of each positive cell."""
        assert self.positives is not None
        return self.positives[0] + self.rows.start, self.positives[1] + self.columns.start

    def positive_products(self, products: Tensor) -> Tensor:
        """(n,) inner products of the positives in ``wide``, given those of all cells, (r, c).

        Not computed anew in float64: where all vectors are alike, float32 products share their rounding errors, and
        these cancel between positives and negatives.
        """
        assert self.positives is not None
        return products[self.positives].to(wide(products.device))

    def add_gradients(self, grad: Tensor) -> None:
        """Gradients (r, c) of the inner products to the gradients of both sides."""
        if self.grad_queries is not None:
            self.grad_queries.addmm_(grad, self.keys)
        if self.grad_keys is not None:
            self.grad_keys.addmm_(grad.T, self.queries)


class Walk:
    """What stays the same in all passes over one table.

    Args:
        comparison: the table.
        tiling: how it is cut.
    """

    def __init__(self, comparison: Comparison, tiling: Tiling | None = None) -> None:
        self.spread = comparison.spread
        table_bytes = 4 * len(comparison.queries) * len(self.spread.key_ids)
        self.tiling = tiling or Tiling.of(comparison.queries.device, table_bytes)
        self.exchange = comparison.exchange
        self.query_ids = comparison.query_ids
        self.own_keys = comparison.own_keys
        self._positives: dict[tuple[int, int], tuple[Tensor, Tensor] | None] = {}

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
        rows_of = list(_cut(self.query_ids, self.tiling.rows))
        for first, block, block_grad in keys.blocks(grad_keys):
            columns_of = list(_cut(self.spread.key_ids[first : first + len(block)], self.tiling.columns))
            for rows, query_ids, query_range in rows_of:
                for columns, key_ids, key_range in columns_of:
                    disjoint = query_range[1] < key_range[0] or key_range[1] < query_range[0]
                    place = rows.start, first + columns.start
                    if place in self._positives:
                        positives = self._positives[place]
                    else:
                        positives = None if disjoint else _positives(query_ids, key_ids)
                        # Few are remembered for the next pass; with labels they may be as many as the cells.
                        if positives is None or len(positives[0]) <= len(query_ids) + len(key_ids):
                            self._positives[place] = positives
                    yield Tile(
                        rows,
                        slice(first + columns.start, first + columns.stop),
                        queries[rows],
                        block[columns],
                        positives,
                        None if grad_queries is None else grad_queries[rows],
                        None if block_grad is None else block_grad[columns],
                    )


def _cut(ids: Tensor, size: int) -> Iterator[tuple[slice, Tensor, tuple[int, int]]]:
    """Slices of at most ``size``, their ids, and the smallest and largest of these."""
    pieces = ids.split(size) if len(ids) else ()
    ranges = torch.stack([torch.stack(piece.aminmax()) for piece in pieces]).tolist() if pieces else []
    for i, (piece, (low, high)) in enumerate(zip(pieces, ranges, strict=True)):
        yield slice(i * size, i * size + len(piece)), piece, (low, high)


def _positives(query_ids: Tensor, key_ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """Row and column of every pair of equal ids, without a (r, c) table of comparisons."""
    ordered, order = key_ids.sort()
    first = torch.searchsorted(ordered, query_ids.contiguous())
    n = torch.searchsorted(ordered, query_ids.contiguous(), right=True) - first
    row = torch.repeat_interleave(n)
    place = torch.arange(len(row), device=row.device) - (n.cumsum(0) - n)[row]  # among the row's own positives
    return (row, order[first[row] + place]) if len(row) else None


def matches(ids: Tensor, others: Tensor) -> Tensor:
    """(n,) int64: for each of ``ids`` (n,) how many of ``others`` (m,) are equal to it."""
    ordered, ids = others.sort().values, ids.contiguous()
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


def wide(device: torch.device) -> torch.dtype:
    """The dtype of sums over many tiles: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


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
