"""Margin loss and negative cosine without the table: the values and gradients of ``dense_distances``.

As of the sigmoid loss, a cell's gradient depends on no other cell, so all is done in the forward pass; the backward
pass only multiplies by what comes from above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.objectives.comparison import widened
from clipkit.objectives.exchange import sum_plain, world_size
from clipkit.objectives.tile import wide
from clipkit.objectives.walk import Walk, exact_scores, refuse_create_graph


class TiledMargin(torch.autograd.Function):
    """Queries, keys, margin, the walk and whether gradients are wanted to the negatives' part of the loss ()."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, margin: float, walk: Walk, graph: bool) -> Tensor:
        need_queries, need_keys = (graph and need for need in ctx.needs_input_grad[:2])
        with exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = walk.keys(wide_keys)
            totals = queries.new_zeros(2, dtype=wide(queries.device))  # the loss, and how many cells are in it
            grad_queries = torch.zeros_like(wide_queries) if need_queries else None
            products_buffer, buffer = walk.buffer(wide_queries), walk.buffer(wide_queries)
            for tile in walk.tiles(wide_queries, blocks, grad_queries, need_keys):
                distances = tile.products(products_buffer).mul_(-2).add_(2).clamp_(min=0).sqrt_()
                gaps = torch.sub(margin, distances, out=tile.room(buffer)).clamp_(min=0)
                if tile.positives is not None:
                    gaps[tile.positives] = 0
                tile.clear(gaps)
                totals[0] += gaps.square().sum(dtype=totals.dtype) / 2
                totals[1] += (gaps > 0).sum()
                # d/ds of (margin - d)^2 / 2 with d^2 = 2 - 2 s; where d is 0 there is no way to go
                tile.add_gradients(gaps.div_(distances.masked_fill_(distances == 0, torch.inf)))
            loss, n = sum_plain(totals)
            ctx.n = n.clamp(min=1)
        ctx.save_for_backward(queries, keys, grad_queries)
        ctx.blocks = blocks
        return (loss / ctx.n).to(wide_queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx, grads[0], 1.0), None, None, None)


class NegativeCosine(torch.autograd.Function):
    """Queries, keys, the walk and whether gradients are wanted to the loss ().

    No cell is ever made: a query's cosines with all its positives add up to its product with their sum, so what is
    needed is one sum of keys, and of queries, for each id.
    """

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, walk: Walk, graph: bool) -> Tensor:
        need_queries, need_keys = (graph and need for need in ctx.needs_input_grad[:2])
        with exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = walk.keys(wide_keys)
            ids, place = walk.query_ids.unique(return_inverse=True)
            empty = wide_queries.new_zeros(len(ids), queries.shape[1])
            of_queries, of_keys = empty.index_add(0, place, wide_queries), empty
            selves = torch.zeros_like(walk.query_ids, dtype=torch.bool)
            if walk.itself:
                selves = walk.query_ids == walk.spread.key_ids[walk.own_keys]
            for first, block, block_grad in blocks.blocks(need_keys):
                at, column = _among(walk.spread.key_ids[first : first + len(block)], ids)
                of_keys.index_add_(0, at, block[column])
                if block_grad is not None:
                    block_grad[column] += of_queries[at]  # a ring's block brings the other ranks'
                    if walk.itself and first <= walk.own_keys.start < first + len(block):
                        own = block_grad[walk.own_keys.start - first :][: len(queries)]
                        own[selves] -= wide_queries[selves]
            partners = of_keys[place]
            if walk.itself:
                partners = partners - wide_keys * selves[:, None]
            cosines = (wide_queries * partners).sum(1).sum(dtype=wide(queries.device))
            n = walk.positive_counts()[0].sum().to(cosines.dtype)
            total, n = sum_plain(torch.stack([2 * n - 2 * cosines, n]))
            ctx.n = n.clamp(min=1)
        ctx.save_for_backward(queries, keys, partners if need_queries else None)
        ctx.blocks = blocks
        return (total / ctx.n).to(wide_queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return (*_backward(ctx, grads[0], -2.0), None, None)


def _among(ids: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Place in the sorted ``known`` and in ``ids`` of each of ``ids`` that is known, (n,) int64 each."""
    if not len(known):
        return known, known
    at = torch.searchsorted(known, ids).clamp(max=len(known) - 1)
    column = (known[at] == ids).nonzero()[:, 0]
    return at[column], column


def _backward(ctx: Any, above: Tensor, factor: float) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of queries and keys, which wait in ``ctx`` but for ``factor`` and the division by n."""
    refuse_create_graph()
    queries, keys, grad_queries = ctx.saved_tensors
    with torch.no_grad():
        scale = above.to(ctx.n.dtype) * (factor * world_size()) / ctx.n
        grad_keys = ctx.blocks.grad() if ctx.needs_input_grad[1] else None
        return tuple(  # type: ignore[return-value]
            None if grad is None else (grad * scale.to(grad.dtype)).to(like.dtype)
            for grad, like in ((grad_queries, queries), (grad_keys, keys))
        )
