"""A tile of the comparison table: some of this rank's queries against some of everybody's keys."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from clipkit.objectives.cells import Places


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
        columns: of everybody's keys, and after them of the queue.
        queries, keys: (r, D) and (c, D).
        positives: row and column within the tile of each positive cell, (n,) int64 each; None where there is none.
        grad_queries, grad_keys: (r, D) and (c, D) places where gradients are added up, or None.
        excluded: the cells that do not count: places as ``positives`` has them, or a (r, c) bool mask where they are
            many; None where there is none.
        shift: (c,) added to the scores of each key, or None.
        queued: whether the keys are the queue's, whose columns do not count.
    """

    rows: slice
    columns: slice
    queries: Tensor
    keys: Tensor
    positives: tuple[Tensor, Tensor] | None
    grad_queries: Tensor | None
    grad_keys: Tensor | None
    excluded: Places | Tensor | None = None
    shift: Tensor | None = None
    queued: bool = False

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

    def scores(self, products: Tensor, scale: Tensor, out: Tensor) -> Tensor:
        """(r, c) scores without the bias, into the first cells of ``out``."""
        scores = torch.mul(products, scale.to(out.dtype), out=self.room(out))
        return scores if self.shift is None else scores.add_(self.shift)

    def positive_scores(self, positive_products: Tensor, scale: Tensor) -> Tensor:
        """(n,) scores of the positives without the bias, in ``wide``, given their products (n,)."""
        assert self.positives is not None
        scores = positive_products * scale
        return scores if self.shift is None else scores + self.shift[self.positives[1]]

    def clear(self, cells: Tensor, value: float = 0.0) -> Tensor:
        """``cells`` (r, c) with ``value`` where they do not count, in place."""
        if isinstance(self.excluded, Tensor):
            cells.masked_fill_(self.excluded, value)
        elif self.excluded is not None:
            cells[self.excluded] = value
        return cells

    def n_excluded(self, dim: int) -> Tensor | int:
        """How many cells do not count: by rows (r,) for ``dim`` 1, by columns (c,) for 0."""
        if self.excluded is None:
            return 0
        if isinstance(self.excluded, Tensor):
            return self.excluded.sum(dim)
        return torch.bincount(self.excluded[1 - dim], minlength=len(self.queries) if dim else len(self.keys))

    def add_gradients(self, grad: Tensor) -> None:
        """Gradients (r, c) of the inner products to the gradients of both sides."""
        if self.grad_queries is not None:
            self.grad_queries.addmm_(grad, self.keys)
        if self.grad_keys is not None:
            self.grad_keys.addmm_(grad.T, self.queries)


def wide(device: torch.device) -> torch.dtype:
    """The dtype of sums over many tiles: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
