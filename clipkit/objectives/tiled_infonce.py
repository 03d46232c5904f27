"""InfoNCE in tiles: the value and the gradients of ``dense.infonce``, in memory that does not hold the table.

It takes one pass for both directions. With E = exp(s - c) for one constant c, row and column sums come
from the same exponential: A over a row's (or column's) positives, R over its negatives. The backward pass walks the
table again, or reads the tiles that were kept, with these gradients of a row's (or column's) cross-entropy:

- a negative: E / (A + R);
- a positive of n: (n E - A - R) / (n (A + R)), which for a single positive is -R / (A + R): where the positives win,
  nothing is subtracted from something that is almost equal.

c = max(0, bound + log K - 80), with a bound on the scores from the actual norms, so that no sum overflows float32.
Where a sum gets so small that its terms have lost bits, all ranks take every row's and column's own maximum instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipkit.objectives import dense
from clipkit.objectives.comparison import widened
from clipkit.objectives.exchange import Gathered, Ring, max_over_ranks, sum_plain, world_size
from clipkit.objectives.tile import Tile, wide
from clipkit.objectives.walk import Walk, exact_scores, refuse_create_graph


class TiledInfoNCE(torch.autograd.Function):
    """Queries, keys, scale (1,), bias, the walk and whether columns count too to the loss ()."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, walk: Walk, both: bool
    ) -> Tensor:
        # The bias moves all scores alike and leaves a cross-entropy as it is.
        with exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = walk.keys(wide_keys)
            kept: dict[tuple[int, int], Tensor] = {}
            shift = _constant(wide_queries, blocks, scale, walk)
            rows, columns, faded = _walk_sums(walk, wide_queries, blocks, scale, shift, kept, both)
            if faded:
                kept.clear()
                shift = _maxima(walk, wide_queries, blocks, scale)
                rows, columns, _ = _walk_sums(walk, wide_queries, blocks, scale, shift, kept, both)
            loss, n_rows, n_columns, center = _loss(walk, rows, columns, shift, both)
        everyone = blocks.keys if isinstance(blocks, Gathered) and world_size() > 1 else None
        ctx.save_for_backward(queries, keys, scale, bias, everyone)
        ctx.walk, ctx.shift, ctx.rows, ctx.columns, ctx.kept = walk, shift, rows, columns, kept
        ctx.n_rows, ctx.both = n_rows, both
        ctx.ratio = n_rows / n_columns if both else torch.zeros_like(n_rows)
        # a number that the products' dtype holds, so that the same is taken off the positives and the negatives
        ctx.center = (center / scale.reshape(())).to(wide_queries.dtype).to(center.dtype)
        return loss.to(wide_queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_create_graph()
        queries, keys, scale, bias, everyone = ctx.saved_tensors
        need_queries, need_keys, need_scale, need_bias, _, _ = ctx.needs_input_grad
        with torch.no_grad(), exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = ctx.walk.keys(wide_keys, everyone)
            grad_queries = torch.zeros_like(wide_queries) if need_queries else None
            grad_scale = _walk_gradients(ctx, wide_queries, blocks, scale, grad_queries, need_keys)
            grad_keys = blocks.grad()
            factor = grads[0].to(grad_scale.dtype) * world_size() * (0.5 if ctx.both else 1.0) / ctx.n_rows
            return (
                _times(grad_queries, factor * scale, queries),
                _times(grad_keys, factor * scale, keys),
                (grad_scale * factor).to(scale.dtype).view_as(scale) if need_scale else None,
                torch.zeros_like(bias) if need_bias else None,
                None,
                None,
            )


@dataclass(frozen=True)
class _Sums:
    """Of every row (or column): exponentials of positives and of negatives, positive scores, numbers of positives and
    of negatives; (N,) each."""

    positive: Tensor
    negative: Tensor
    score: Tensor
    n: Tensor
    others: Tensor

    @classmethod
    def zeros(cls, n: Tensor, total: int) -> _Sums:
        zero = n.new_zeros(len(n), dtype=wide(n.device))
        return cls(zero, zero.clone(), zero.clone(), n.to(zero.dtype), (total - n).to(zero.dtype))

    def add_positives(self, at: Tensor, scores: Tensor, shift: Tensor) -> None:
        """Scores (n,) of positives in rows ``at`` (n,)."""
        self.score.index_add_(0, at, scores)
        self.positive.index_add_(0, at, (scores - shift).exp())

    def faded(self, floor: float) -> Tensor:
        """() bool: whether a sum that counts has fallen below ``floor``."""
        of_interest = torch.where(self.others > 0, self.negative, self.positive)
        return ((of_interest < floor) & (self.n > 0)).any()

    def inverse(self) -> Tensor:
        """1 / (A + R) of what counts, 0 elsewhere."""
        return torch.where(self.n > 0, 1 / (self.positive + self.negative), torch.zeros_like(self.n))

    def positive_gradients(self, at: Tensor, scores: Tensor, shift: Tensor) -> Tensor:
        """(n,) gradients at the positives with ``scores`` (n,) in rows ``at`` (n,)."""
        a, r, n = self.positive[at], self.negative[at], self.n[at]
        apart = torch.where(n == 1, torch.zeros_like(a), n * (scores - shift).exp() - a)
        return (apart - r) / (n * (a + r))


@dataclass(frozen=True)
class _Shift:
    """What is subtracted before exp: one constant (), which may be nothing, or the maxima of rows
    (q,) and columns (K,)."""

    rows: Tensor
    columns: Tensor
    nothing: bool = False

    def exponentials(
        self, products: Tensor, scale: Tensor, tile: Tile, buffer: Tensor, both: bool
    ) -> tuple[Tensor, Tensor]:
        """(r, c) exponentials for the rows' and, if ``both``, for the columns' sums: one tensor, in ``buffer``, if all
        share c or columns do not count. Cells that do not count may hold anything."""
        scores = tile.scores(products, scale, buffer)
        if self.rows.ndim == 0:
            if not self.nothing:
                scores.sub_(self.rows)
            scores.exp_()
            return scores, scores
        columns = (scores - self.columns[tile.columns]).exp_() if both else None
        rows = scores.sub_(self.rows[tile.rows, None]).exp_()
        return rows, rows if columns is None else columns

    def at(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """The shifts of the cells ``row``, ``column`` (n,) for the rows' and for the columns' sums."""
        return (self.rows, self.columns) if self.rows.ndim == 0 else (self.rows[row], self.columns[column])


def _times(grad: Tensor | None, factor: Tensor, like: Tensor) -> Tensor | None:
    """``grad`` times ``factor`` (1,), in place, in the dtype of ``like``."""
    return None if grad is None else grad.mul_(factor.reshape(())).to(like.dtype)


def _constant(queries: Tensor, blocks: Gathered | Ring, scale: Tensor, walk: Walk) -> _Shift:
    """The smallest constant with which no sum of exponentials overflows, the same on all ranks."""
    norms = [x.norm(dim=1).amax() if len(x) else x.new_zeros(()) for x in (queries, blocks.keys)]
    if walk.queue is not None and len(walk.queue):
        norms[1] = torch.maximum(norms[1], walk.queue.to(queries.dtype).norm(dim=1).amax())
    bound = scale.reshape(()) * max_over_ranks(torch.stack(norms)).prod()
    if walk.spread.key_shift is not None and len(walk.spread.key_shift):
        bound = bound + walk.spread.key_shift.max().clamp(min=0).to(bound.dtype)
    n = max(walk.n_queries, walk.n_keys, 1)
    room = 0.9 * math.log(torch.finfo(queries.dtype).max) - math.log(n)
    # a whole number: subtracting it from a score is then exact wherever the score is the larger part
    shift = (bound - room).clamp(min=0).ceil()
    return _Shift(shift, shift, nothing=not shift.item())


def _walk_sums(
    walk: Walk,
    queries: Tensor,
    blocks: Gathered | Ring,
    scale: Tensor,
    shift: _Shift,
    kept: dict[tuple[int, int], Tensor],
    both: bool,
) -> tuple[_Sums, _Sums, bool]:
    """Sums of this rank's rows and of all ranks' columns, and whether any that counts has faded on any rank.

    Args:
        kept: takes tiles of inner products while the budget lasts, by first row and column.
        both: whether columns count too.
    """
    of_rows, of_columns = walk.positive_counts()
    rows, columns = _Sums.zeros(of_rows, walk.n_keys), _Sums.zeros(of_columns, walk.n_queries)
    excluded = torch.zeros_like(columns.others)
    budget = walk.tiling.keep_bytes
    products_buffer, buffer = walk.buffer(queries), walk.buffer(queries)
    for tile in walk.tiles(queries, blocks):
        size = len(tile.queries) * len(tile.keys) * queries.element_size()
        products = tile.products(products_buffer if size > budget else None)
        if size <= budget:
            kept[tile.rows.start, tile.columns.start] = products
            budget -= size
        in_columns = both and not tile.queued
        by_rows, by_columns = shift.exponentials(products, scale, tile, buffer, in_columns)
        if tile.positives is not None:
            row, column = tile.table_positives()
            scores = tile.positive_scores(tile.positive_products(products), scale)
            row_shift, column_shift = shift.at(row, column)
            rows.add_positives(row, scores, row_shift)
            columns.add_positives(column, scores, column_shift)
            by_rows[tile.positives] = by_columns[tile.positives] = 0
        rows.negative[tile.rows] += tile.clear(by_rows).sum(1)
        rows.others[tile.rows] -= tile.n_excluded(1)
        if in_columns:
            columns.negative[tile.columns] += (by_rows if by_columns is by_rows else tile.clear(by_columns)).sum(0)
            excluded[tile.columns] += tile.n_excluded(0)
    info = torch.finfo(queries.dtype)
    # Beside its own maximum a sum may well be nothing: then it is nothing beside the positives.
    floor = info.tiny / info.eps * max(walk.n_queries, walk.n_keys, 1) if shift.rows.ndim == 0 else 0.0
    return rows, columns, _together(walk, rows, columns, excluded, floor, both)


def _together(walk: Walk, rows: _Sums, columns: _Sums, excluded: Tensor, floor: float, both: bool) -> bool:
    """Put the columns' sums of all ranks together; returns whether any sum that counts, on any rank, is less than
    ``floor``."""
    faded = rows.faded(floor)
    if not both:
        return bool(max_over_ranks(faded.to(rows.n.dtype)))
    if world_size() > 1:
        # One exchange: a rank whose rows have faded says so with a sum that no exponentials give.
        sums = [columns.positive, columns.negative, *([excluded] if walk.excludes else [])]
        positive, negative, *others = sum_plain(torch.stack(sums).masked_fill(faded, torch.inf))
        columns.positive.copy_(positive)
        columns.negative.copy_(negative)
        faded = (negative == torch.inf).any()
        excluded = others[0] if others else excluded
    columns.others.sub_(excluded)
    return bool(faded | columns.faded(floor))


def _maxima(walk: Walk, queries: Tensor, blocks: Gathered | Ring, scale: Tensor) -> _Shift:
    """The largest score of every row of this rank and of every column."""
    rows = queries.new_full((len(queries),), -torch.inf)
    columns = queries.new_full((len(walk.spread.key_ids),), -torch.inf)
    buffer = walk.buffer(queries)
    for tile in walk.tiles(queries, blocks):
        products = tile.products(buffer)
        scores = tile.clear(tile.scores(products, scale, buffer), -torch.inf)
        rows[tile.rows] = torch.maximum(rows[tile.rows], scores.amax(1))
        if not tile.queued:
            columns[tile.columns] = torch.maximum(columns[tile.columns], scores.amax(0))
    return _Shift(rows, max_over_ranks(columns))


def _loss(walk: Walk, rows: _Sums, columns: _Sums, shift: _Shift, both: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The global loss (), how many rows () and columns () of the whole table count, and the mean positive score ()."""
    row_losses, _ = dense.cross_entropies(shift.rows, rows.positive, rows.negative, rows.score, rows.n)
    # A column's positive scores stay where they were found: every rank takes its own off the column's loss.
    zero = torch.zeros_like(columns.score)
    column_losses, taken = dense.cross_entropies(shift.columns, columns.positive, columns.negative, zero, columns.n)
    taken_off = torch.where(taken, columns.score / columns.n.clamp(min=1), zero)
    column_loss = column_losses[walk.own_keys].sum() - taken_off.sum()
    mine = [row_losses.sum(), column_loss, (rows.n > 0).sum().to(zero.dtype), rows.score.sum(), rows.n.sum()]
    row_loss, column_loss, n_rows, score, n = sum_plain(torch.stack(mine))
    n_rows, n_columns = n_rows.clamp(min=1), (columns.n > 0).sum().clamp(min=1).to(zero.dtype)
    loss = 0.5 * (row_loss / n_rows + column_loss / n_columns) if both else row_loss / n_rows
    return loss, n_rows, n_columns, score / n.clamp(min=1)


def _walk_gradients(
    ctx: Any, queries: Tensor, blocks: Gathered | Ring, scale: Tensor, grad_queries: Tensor | None, grad_keys: bool
) -> Tensor:
    """Add up the gradients of the inner products, but for the factor that all share; returns the scale's, ()."""
    walk, rows, columns, shift = ctx.walk, ctx.rows, ctx.columns, ctx.shift
    row_weights = rows.inverse().to(queries.dtype)[:, None]
    column_weights = (columns.inverse() * ctx.ratio).to(queries.dtype)
    grad_scale = torch.zeros_like(ctx.ratio)
    products_buffer, buffer, grad_buffer = (walk.buffer(queries) for _ in range(3))
    for tile in walk.tiles(queries, blocks, grad_queries, grad_keys):
        kept = ctx.kept.get((tile.rows.start, tile.columns.start))
        products = tile.products(products_buffer) if kept is None else kept
        in_columns = ctx.both and not tile.queued
        by_rows, by_columns = shift.exponentials(products, scale, tile, buffer, in_columns)
        grad = tile.room(grad_buffer)
        if not in_columns:
            torch.mul(by_rows, row_weights[tile.rows], out=grad)
        elif by_rows is by_columns:
            torch.add(row_weights[tile.rows], column_weights[tile.columns], out=grad).mul_(by_rows)
        else:
            torch.mul(by_rows, row_weights[tile.rows], out=grad).addcmul_(by_columns, column_weights[tile.columns])
        if tile.positives is not None:
            row, column = tile.table_positives()
            positive = tile.positive_products(products)
            row_shift, column_shift = shift.at(row, column)
            scores = tile.positive_scores(positive, scale)
            pull = rows.positive_gradients(row, scores, row_shift)
            if ctx.both:
                pull += columns.positive_gradients(column, scores, column_shift) * ctx.ratio
            grad_scale += (pull * (positive - ctx.center)).sum()
            grad[tile.positives] = 0
        tile.clear(grad)
        # All gradients add up to 0, so a constant may be taken off the products: what is left does not cancel.
        apart = torch.sub(products, ctx.center, out=by_rows).mul_(grad)
        grad_scale += apart.sum(1).sum(dtype=grad_scale.dtype)
        if tile.positives is not None:
            grad[tile.positives] = pull.to(grad.dtype)
        tile.add_gradients(grad)
    return grad_scale
