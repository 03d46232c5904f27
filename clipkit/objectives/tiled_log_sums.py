"""``log_sums`` in tiles: log-sum-exps of rows and columns with their gradients, in memory that does not hold the table.

Every sum keeps the largest score it has seen, up to a whole number, and what has been added up beside it is shrunk
when a larger one comes. The backward pass walks the table again: a score gets the part exp(a s - log sum) of each
sum's gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipkit.objectives.comparison import widened
from clipkit.objectives.exchange import max_over_ranks, sum_plain
from clipkit.objectives.log_sums import LogSums
from clipkit.objectives.tile import Tile, wide
from clipkit.objectives.walk import Walk, exact_scores, refuse_create_graph


def tiled_log_sums(
    queries: Tensor, keys: Tensor, scale: Tensor, walk: Walk, exponents: tuple[float, ...], both: bool
) -> tuple[LogSums, LogSums]:
    """As ``log_sums``, without the bias, which moves all scores alike. Columns' sums are all empty unless ``both``."""
    rows, columns = _TiledLogSums.apply(queries, keys, scale, walk, exponents, both)
    return _named(rows, len(exponents)), _named(columns, len(exponents))


def _named(stacked: Tensor, n: int) -> LogSums:
    return LogSums(list(stacked[:n].unbind(0)), *stacked[n:].unbind(0))


class _TiledLogSums(torch.autograd.Function):
    """Queries, keys, scale (1,), walk, exponents and whether columns count to the sums of rows (E + 5, q) and of
    columns (E + 5, K), in the order of ``LogSums``."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, walk: Walk, exponents: tuple[float, ...], both: bool
    ) -> tuple[Tensor, Tensor]:
        with exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            rows, columns = (_Sums(x, len(exponents)) for x in walk.positive_counts())
            products_buffer, buffer = walk.buffer(wide_queries), walk.buffer(wide_queries)
            for tile in walk.tiles(wide_queries, walk.keys(wide_keys)):
                products = tile.products(products_buffer)
                scores = tile.scores(products, scale, buffer)
                if tile.positives is not None:
                    row, column = tile.table_positives()
                    of_positives = tile.positive_scores(tile.positive_products(products), scale)
                    rows.add_positives(row, of_positives)
                    columns.add_positives(column, of_positives)
                in_columns = both and not tile.queued
                for i, a in enumerate(exponents):
                    powers = _negatives(tile, torch.mul(scores, a, out=products), -torch.inf)
                    rows.negatives[i].add(tile.rows, powers)
                    if in_columns:
                        columns.negatives[i].add(tile.columns, powers.T)
                negative = _negatives(tile, products.fill_(1), 0.0)
                rows.others[tile.rows] += negative.sum(1)
                if in_columns:
                    columns.others[tile.columns] += negative.sum(0)
            if both:
                columns.over_ranks()
        ctx.save_for_backward(queries, keys, scale)
        ctx.walk, ctx.exponents, ctx.both, ctx.rows, ctx.columns = walk, exponents, both, rows, columns
        return rows.stacked(), columns.stacked()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        queries, keys, scale = ctx.saved_tensors
        need_queries, need_keys, need_scale, *_ = ctx.needs_input_grad
        walk, exponents, both = ctx.walk, ctx.exponents, ctx.both
        with torch.no_grad(), exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = walk.keys(wide_keys)
            # every rank has the sums of all columns and the gradients of what it has made of them
            rows, columns = ctx.rows.pulls(grads[0]), ctx.columns.pulls(sum_plain(grads[1]) if both else grads[1])
            grad_queries = torch.zeros_like(wide_queries) if need_queries else None
            grad_scale = torch.zeros_like(grads[0][0, :1]).sum()
            products_buffer, buffer, spare = (walk.buffer(wide_queries) for _ in range(3))
            for tile in walk.tiles(wide_queries, blocks, grad_queries, need_keys):
                products = tile.products(products_buffer)
                scores = tile.scores(products, scale, buffer)
                grad = torch.zeros_like(scores)
                for i, a in enumerate(exponents):
                    top, weight = rows.negatives[i]
                    grad += _powers(scores, a, top[tile.rows, None], spare, tile) * weight[tile.rows, None]
                    if both and not tile.queued:
                        top, weight = columns.negatives[i]
                        grad += _powers(scores, a, top[tile.columns], spare, tile) * weight[tile.columns]
                _negatives(tile, grad, 0.0)
                grad_scale += (grad * products).sum(1).sum(dtype=grad_scale.dtype)
                if tile.positives is not None:
                    row, column = tile.table_positives()
                    positive = tile.positive_products(products)
                    of_positives = tile.positive_scores(positive, scale)
                    pull = rows.at(row, of_positives)
                    if both:
                        pull = pull + columns.at(column, of_positives)
                    grad_scale += (pull * positive).sum()
                    grad[tile.positives] = pull.to(grad.dtype)
                tile.add_gradients(grad)
            grad_keys = blocks.grad()
            factor = scale.reshape(())
            return (
                None if grad_queries is None else (grad_queries * factor).to(queries.dtype),
                None if grad_keys is None else (grad_keys * factor).to(keys.dtype),
                grad_scale.to(scale.dtype).view_as(scale) if need_scale else None,
                None,
                None,
                None,
            )


class _Online:
    """N log-sum-exps that are added up bit by bit: the largest, up to a whole number, and the sum beside it."""

    def __init__(self, n: int, like: Tensor) -> None:
        self.top = torch.full((n,), -torch.inf, dtype=wide(like.device), device=like.device)
        self.sum = torch.zeros_like(self.top)

    def add(self, at: slice, x: Tensor) -> None:
        """``x`` (m, any number) to the sums ``at`` (m)."""
        top = torch.maximum(self.top[at], x.amax(1).to(self.top.dtype).ceil())
        shift = top.masked_fill(top == -torch.inf, 0)
        more = (x - shift[:, None].to(x.dtype)).exp_().sum(1)
        self.sum[at] = self.sum[at] * (self.top[at] - shift).exp() + more
        self.top[at] = top

    def add_at(self, at: Tensor, x: Tensor) -> None:
        """Each of ``x`` (n,) to the sum ``at`` (n,)."""
        top = self.top.scatter_reduce(0, at, x.ceil(), "amax")
        shift = top.masked_fill(top == -torch.inf, 0)
        self.sum = (self.sum * (self.top - shift).exp()).index_add_(0, at, (x - shift[at]).exp())
        self.top = top

    def over_ranks(self) -> None:
        top = max_over_ranks(self.top)
        self.sum = sum_plain(self.sum * (self.top - top.masked_fill(top == -torch.inf, 0)).exp())
        self.top = top

    def log(self) -> Tensor:
        return self.sum.log() + self.top.masked_fill(self.top == -torch.inf, 0)

    def pull(self, grad: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) top and weight, with which exp(x - top) weight is what x gets of the gradient ``grad`` (N,)."""
        empty = self.sum == 0
        weight = (grad / self.sum.masked_fill(empty, 1)).masked_fill(empty, 0)
        return self.top.masked_fill(empty, torch.inf), weight


class _Sums:
    """``LogSums`` in the making, of N rows or columns with ``n`` (N,) positives."""

    def __init__(self, n: Tensor, exponents: int) -> None:
        self.negatives = [_Online(len(n), n) for _ in range(exponents)]
        self.positive, self.inverse = _Online(len(n), n), _Online(len(n), n)
        self.score, self.others = torch.zeros_like(self.positive.sum), torch.zeros_like(self.positive.sum)
        self.n = n.to(self.score.dtype)

    def add_positives(self, at: Tensor, scores: Tensor) -> None:
        self.positive.add_at(at, scores)
        self.inverse.add_at(at, -scores)
        self.score.index_add_(0, at, scores)

    def over_ranks(self) -> None:
        for online in (*self.negatives, self.positive, self.inverse):
            online.over_ranks()
        self.score, self.others = sum_plain(torch.stack([self.score, self.others])).unbind(0)

    def stacked(self) -> Tensor:
        logs = [online.log() for online in (*self.negatives, self.positive, self.inverse)]
        return torch.stack([*logs, self.score, self.n, self.others])

    def pulls(self, grad: Tensor) -> _Pulls:
        return _Pulls(self, grad)


class _Pulls:
    """What the scores get of the gradients (E + 5, N) of ``sums``."""

    def __init__(self, sums: _Sums, grad: Tensor) -> None:
        e = len(sums.negatives)
        self.negatives = [online.pull(g) for online, g in zip(sums.negatives, grad[:e].unbind(0), strict=True)]
        self.positive, self.inverse = sums.positive.pull(grad[e]), sums.inverse.pull(grad[e + 1])
        self.score = grad[e + 2]

    def at(self, at: Tensor, scores: Tensor) -> Tensor:
        """(n,) of positives with ``scores`` (n,) in rows (or columns) ``at``."""
        of_sum, of_inverse = (
            (x - top[at]).exp() * weight[at] for x, (top, weight) in ((scores, self.positive), (-scores, self.inverse))
        )
        return of_sum - of_inverse + self.score[at]


def _negatives(tile: Tile, cells: Tensor, value: float) -> Tensor:
    """``cells`` (r, c) with ``value`` where there is no negative, in place."""
    if tile.positives is not None:
        cells[tile.positives] = value
    return tile.clear(cells, value)


def _powers(scores: Tensor, a: float, top: Tensor, spare: Tensor, tile: Tile) -> Tensor:
    """(r, c) a exp(a s - top)."""
    return torch.mul(scores, a, out=tile.room(spare)).sub_(top.to(scores.dtype)).exp_().mul_(a)
