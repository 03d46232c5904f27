"""The triplet loss in strips: some rows with all their columns at a time, as mining looks at a whole row.

A strip has as many rows as make a quarter of a tile's cells, as each is held several times in float64. The keys are
gathered whatever the comparison's ``exchange``: a row cannot be mined while part of it is under way.

Distances are squared, d = 2 - 2 s; what is compared here is -2 s, which float32 has to the last bit. Within a row, the
negatives' distances are sorted once. A positive p is violated by the first k of them that are below d_p + margin, so
of K negatives and P positives all K P triplets take (K + P) log K steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clipkit.objectives.cells import Places
from clipkit.objectives.comparison import widened
from clipkit.objectives.dense_distances import Mining
from clipkit.objectives.exchange import gather_plain, scatter_sum, sum_plain, world_size
from clipkit.objectives.tile import wide
from clipkit.objectives.walk import Walk, exact_scores, refuse_create_graph


class TiledTriplet(torch.autograd.Function):
    """Queries, keys, margin, mining, the walk and whether gradients are wanted to the loss ()."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, margin: float, mining: Mining, walk: Walk, graph: bool
    ) -> Tensor:
        need_queries, need_keys = (graph and need for need in ctx.needs_input_grad[:2])
        mined = {"all": _all, "hardest": _hardest, "semihard": _semihard}[mining]
        with exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            everyone = gather_plain(wide_keys, walk.spread.key_counts)
            n_keys = len(everyone)
            if walk.queue is not None:
                everyone = torch.cat([everyone, walk.queue.to(everyone.dtype)])
            totals = queries.new_zeros(2, dtype=wide(queries.device))  # the loss, and what it is divided by
            grad_queries = torch.zeros_like(wide_queries) if need_queries else None
            grad_keys = torch.zeros_like(everyone[:n_keys]) if need_keys else None
            for rows, positives, barred in _strips(walk, len(everyone)):
                distances = (wide_queries[rows] @ everyone.T).mul_(-2).to(totals.dtype)
                strip = _Strip(distances, positives, barred)
                if strip.useless:
                    continue
                loss, n, grad = mined(strip, margin)
                totals += torch.stack([loss, n])
                grad = grad.mul_(-2).to(wide_queries.dtype)
                if grad_queries is not None:
                    grad_queries[rows] = grad @ everyone
                if grad_keys is not None:
                    grad_keys.addmm_(grad[:, :n_keys].T, wide_queries[rows])
            loss, n = sum_plain(totals)
            ctx.n = n.clamp(min=1)
        ctx.save_for_backward(queries, keys, grad_queries, grad_keys)
        ctx.key_counts = walk.spread.key_counts
        return (loss / ctx.n).to(wide_queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        queries, keys, grad_queries, grad_keys = ctx.saved_tensors
        with torch.no_grad():
            factor = grads[0].to(ctx.n.dtype) * world_size() / ctx.n
            if grad_queries is not None:
                grad_queries = (grad_queries * factor.to(grad_queries.dtype)).to(queries.dtype)
            if grad_keys is not None:
                grad_keys = scatter_sum(grad_keys, ctx.key_counts)
                grad_keys = (grad_keys * factor.to(grad_keys.dtype)).to(keys.dtype)
        return grad_queries, grad_keys, None, None, None, None


def _strips(walk: Walk, width: int) -> Iterator[tuple[slice, Places | None, Tensor]]:
    """Rows, their positives, and (r, width) bool which cells are no negatives."""
    height = max(1, walk.tiling.rows * walk.tiling.columns // 4 // max(width, 1))
    for start in range(0, len(walk.query_ids), height):
        rows = slice(start, min(start + height, len(walk.query_ids)))
        positives, excluded = walk.places(rows)
        barred = torch.zeros(rows.stop - rows.start, width, dtype=torch.bool, device=walk.query_ids.device)
        for cells in (positives, excluded):
            if isinstance(cells, Tensor):
                barred[:, : cells.shape[1]] |= cells
            elif cells is not None:
                barred[cells] = True
        yield rows, positives, barred


class _Strip:
    """Distances of some rows, their negatives in order, and their positives in a rectangle.

    Args:
        distances: (r, M).
        positives: places of the positives, or None.
        barred: (r, M) bool, which cells are no negatives.
    """

    def __init__(self, distances: Tensor, positives: Places | None, barred: Tensor) -> None:
        self.grad = torch.zeros_like(distances)
        self.negatives = distances.masked_fill(barred, torch.inf)
        self.useless = positives is None or bool(barred.all())
        if positives is None:
            return
        row, column = positives
        with_negatives = ~barred.all(1)
        row, column = row[with_negatives[row]], column[with_negatives[row]]
        self.n = torch.bincount(row, minlength=len(distances))  # positives of each row that count
        order = (row * distances.shape[1] + column).argsort()  # of equal ones the first column is taken
        row, column = row[order], column[order]
        place = torch.arange(len(row), device=row.device) - (self.n.cumsum(0) - self.n)[row]
        shape = len(distances), max(1, int(self.n.max()))
        self.columns = torch.zeros(shape, dtype=torch.int64, device=row.device)  # of the positives (r, P)
        self.columns[row, place] = column
        self.real = torch.zeros(shape, dtype=torch.bool, device=row.device)
        self.real[row, place] = True
        self.positives = distances.gather(1, self.columns)


def _hardest(strip: _Strip, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    rows = (strip.n > 0).nonzero()[:, 0]
    farthest = strip.positives.masked_fill(~strip.real, -torch.inf)
    positive = strip.columns.gather(1, farthest.argmax(1, keepdim=True))[rows, 0]
    negative = strip.negatives.argmin(1)[rows]
    violation = farthest.amax(1)[rows] - strip.negatives[rows, negative] + margin
    violated = (violation > 0).to(strip.grad.dtype)
    strip.grad[rows, positive] = violated
    strip.grad[rows, negative] = -violated
    return (violation * violated).sum(), (strip.n > 0).sum().to(violation.dtype), strip.grad


def _semihard(strip: _Strip, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    ordered, order = strip.negatives.sort(dim=1, stable=True)
    last = (ordered < torch.inf).sum(1, keepdim=True).clamp(min=1) - 1
    farthest = torch.searchsorted(ordered, ordered.gather(1, last))  # the first of several
    farther = torch.searchsorted(ordered, strip.positives, right=True)
    chosen = torch.where(farther <= last, farther, farthest)
    violation = strip.positives - ordered.gather(1, chosen) + margin
    violated = ((violation > 0) & strip.real).to(violation.dtype)
    strip.grad.scatter_add_(1, strip.columns, violated)
    strip.grad.scatter_add_(1, order.gather(1, chosen), -violated)
    return violation[violated > 0].sum(), strip.n.sum().to(violation.dtype), strip.grad


def _all(strip: _Strip, margin: float) -> tuple[Tensor, Tensor, Tensor]:
    ordered, order = strip.negatives.sort(dim=1, stable=True)
    limits = (strip.positives + margin).masked_fill(~strip.real, -torch.inf)
    k = torch.searchsorted(ordered, limits)  # how many negatives violate each positive
    sums = ordered.masked_fill(ordered == torch.inf, 0).cumsum(1)
    sums = torch.cat([sums.new_zeros(len(sums), 1), sums], 1).gather(1, k)
    number = k.to(sums.dtype)
    losses = (strip.positives + margin) * number - sums
    # The t-th negative violates the positives whose k is larger than t.
    counts = number.new_zeros(len(k), ordered.shape[1] + 1).scatter_add_(1, k, strip.real.to(number.dtype))
    violating = counts.sum(1, keepdim=True) - counts.cumsum(1)[:, :-1]
    strip.grad.scatter_(1, order, -violating)
    strip.grad.scatter_add_(1, strip.columns, number)
    return losses.sum(), number.sum(), strip.grad
