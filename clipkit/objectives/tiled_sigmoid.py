"""The pairwise sigmoid loss in tiles: the value and the gradients of ``dense.sigmoid``.

A cell's gradient depends on no other cell, so a tile's gradients are made when its scores are, in the forward pass; the
backward pass only multiplies them by what comes from above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives.comparison import widened
from clipkit.objectives.exchange import sum_plain, world_size
from clipkit.objectives.tile import wide
from clipkit.objectives.walk import SMALL, Walk, exact_scores, refuse_create_graph


class TiledSigmoid(torch.autograd.Function):
    """Queries, keys, scale (1,), bias, the walk and whether gradients are wanted to the loss ()."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, walk: Walk, graph: bool
    ) -> Tensor:
        need_queries, need_keys = (graph and need for need in ctx.needs_input_grad[:2])
        with exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = walk.keys(wide_keys)
            loss, grad_scale, grad_bias = (queries.new_zeros((), dtype=wide(queries.device)) for _ in range(3))
            grad_queries = torch.zeros_like(wide_queries) if need_queries else None
            products_buffer = walk.buffer(wide_queries)
            # Where wrong cells cancel, the bias's gradient is what float32 loses of each: a small table affords more.
            small = len(queries) * walk.n_keys < SMALL
            buffer, spare = (walk.buffer(wide_queries, loss.dtype if small else None) for _ in range(2))
            # Nothing has to be known of other cells, so the gradient of a tile is made when its scores are.
            for tile in walk.tiles(wide_queries, blocks, grad_queries, need_keys):
                products = tile.products(products_buffer)
                scores = tile.clear(tile.scores(products, scale, buffer), -torch.inf)
                if bias is not None:
                    scores += bias.to(scores.dtype)
                if tile.positives is not None:
                    positive = tile.positive_products(products)
                    scores[tile.positives] = -torch.inf
                loss += torch.ops.aten.softplus.out(scores, 1, 50, out=tile.room(spare)).sum()
                grad = scores.sigmoid_()
                if graph:
                    grad_bias += grad.sum()
                    grad_scale += torch.mul(products, grad, out=tile.room(spare)).sum(1).sum(dtype=loss.dtype)
                if tile.positives is not None:
                    positive_score = tile.positive_scores(positive, scale)
                    positive_score = positive_score if bias is None else positive_score + bias
                    loss += F.softplus(-positive_score, threshold=50).sum()
                    pull = -torch.sigmoid(-positive_score)
                    grad_bias += pull.sum()
                    grad_scale += (pull * positive).sum()
                    grad[tile.positives] = pull.to(grad.dtype)
                tile.add_gradients(grad.to(products.dtype))
            n_queries = sum(walk.spread.query_counts)
            total = sum_plain(loss / n_queries)
        ctx.save_for_backward(queries, keys, scale, bias, grad_queries, grad_scale, grad_bias)
        ctx.blocks, ctx.n_queries = blocks, n_queries
        return total.to(wide_queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        queries, keys, scale, bias, grad_queries, grad_scale, grad_bias = ctx.saved_tensors
        _, need_keys, need_scale, need_bias, _, _ = ctx.needs_input_grad
        with torch.no_grad():
            factor = grads[0].to(grad_scale.dtype) * world_size() / ctx.n_queries
            grad_keys = ctx.blocks.grad() if need_keys else None
            return (
                _times(grad_queries, factor * scale, queries),
                _times(grad_keys, factor * scale, keys),
                (grad_scale * factor).to(scale.dtype).view_as(scale) if need_scale else None,
                (grad_bias * factor).to(bias.dtype).view_as(bias) if need_bias else None,
                None,
                None,
            )


def _times(grad: Tensor | None, factor: Tensor, like: Tensor) -> Tensor | None:
    """``grad`` times ``factor`` (1,) in the dtype of ``like``; ``grad`` stays for a second backward pass."""
    return None if grad is None else (grad * factor.to(grad.dtype)).to(like.dtype)
