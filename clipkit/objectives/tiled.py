"""Objectives in their tiled form: the dense ones' values and gradients, in memory that does not hold the table.

Symmetric InfoNCE takes one pass for both directions. With E = exp(s - c) for one constant c, row and column sums come
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
from torch.nn import functional as F

from clipkit.objectives import dense
from clipkit.objectives.comparison import Comparison, widened
from clipkit.objectives.exchange import Gathered, Ring, max_over_ranks, sum_plain, world_size
from clipkit.objectives.walk import Tile, Tiling, Walk, exact_scores, matches, wide


def infonce(c: Comparison, tiling: Tiling | None = None) -> Tensor:
    """Symmetric InfoNCE: the mean of both directions' cross-entropy; see ``clipkit.objectives.dense.infonce``.

    Args:
        c: the comparison.
        tiling: how the table is cut and how much of it is kept; by default what suits the device.

    Returns:
        () loss of the global batch on every rank, float32 (float64 for float64 input); its gradient is W times this
        rank's share, as DDP and FSDP average over ranks.
    """
    if tiling is None and _is_small(c):
        return _narrow(dense.infonce(c, wide(c.queries.device)), c)
    return _InfoNCE.apply(c.queries, c.keys, _scale(c), c.bias, Walk(c, tiling))


def sigmoid(c: Comparison, tiling: Tiling | None = None) -> Tensor:
    """Pairwise sigmoid loss; see ``clipkit.objectives.dense.sigmoid``. Arguments and result as of ``infonce``."""
    if tiling is None and _is_small(c):
        return _narrow(dense.sigmoid(c, wide(c.queries.device)), c)
    return _Sigmoid.apply(c.queries, c.keys, _scale(c), c.bias, Walk(c, tiling), torch.is_grad_enabled())


def _is_small(c: Comparison) -> bool:
    """Whether the dense form costs less: below this, walking takes longer than the arithmetic.

    Only on one process: the tiled form's exchanges are fewer and smaller, and all ranks have to take the same. And not
    under autocast, which would reach the dense form's products if the backward pass is called there too.
    """
    apart = world_size() > 1 or torch.is_autocast_enabled(c.queries.device.type)
    return not apart and len(c.queries) * len(c.keys) <= 1 << 17


def _scale(c: Comparison) -> Tensor:
    """(1,) as the scores use it, from an exp in float64: float32's is off by more than a score's last bit."""
    return _narrow(c.log_scale.to(wide(c.queries.device)).exp(), c)


def _narrow(x: Tensor, c: Comparison) -> Tensor:
    """``x`` in the dtype of the scores."""
    return x if torch.float64 in (c.queries.dtype, c.keys.dtype) else x.float()


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
        return cls(zero, zero.clone(), zero.clone(), n.to(zero.dtype), total - n)

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
    """What is subtracted before exp: one constant (), or the maxima of rows (q,) and columns (K,)."""

    rows: Tensor
    columns: Tensor

    def exponentials(self, products: Tensor, scale: Tensor, tile: Tile, buffer: Tensor) -> tuple[Tensor, Tensor]:
        """(r, c) exponentials for the rows' and for the columns' sums: one tensor, in ``buffer``, if all share c."""
        scores = torch.mul(products, scale, out=tile.room(buffer))
        if self.rows.ndim == 0:
            scores.sub_(self.rows).exp_()
            return scores, scores
        columns = (scores - self.columns[tile.columns]).exp_()
        return scores.sub_(self.rows[tile.rows, None]).exp_(), columns

    def at(self, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """The shifts of the cells ``row``, ``column`` (n,) for the rows' and for the columns' sums."""
        return (self.rows, self.columns) if self.rows.ndim == 0 else (self.rows[row], self.columns[column])


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor | None, walk: Walk) -> Tensor:
        # The bias moves all scores alike and leaves a cross-entropy as it is.
        with exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = walk.keys(wide_keys)
            kept: dict[tuple[int, int], Tensor] = {}
            shift = _constant(wide_queries, blocks, scale, walk)
            rows, columns, faded = _walk_sums(walk, wide_queries, blocks, scale, shift, kept)
            if faded:
                kept.clear()
                shift = _maxima(walk, wide_queries, blocks, scale)
                rows, columns, _ = _walk_sums(walk, wide_queries, blocks, scale, shift, kept)
            loss, n_rows, n_columns, center = _loss(walk, rows, columns, shift)
        everyone = blocks.keys if isinstance(blocks, Gathered) and world_size() > 1 else None
        ctx.save_for_backward(queries, keys, scale, bias, everyone)
        ctx.walk, ctx.shift, ctx.rows, ctx.columns, ctx.kept = walk, shift, rows, columns, kept
        ctx.n_rows, ctx.ratio = n_rows, n_rows / n_columns
        # a number that the products' dtype holds, so that the same is taken off the positives and the negatives
        ctx.center = (center / scale.reshape(())).to(wide_queries.dtype).to(center.dtype)
        return loss.to(wide_queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, scale, bias, everyone = ctx.saved_tensors
        need_queries, need_keys, need_scale, need_bias, _ = ctx.needs_input_grad
        with torch.no_grad(), exact_scores(queries.device):
            wide_queries, wide_keys = widened(queries, keys)
            blocks = ctx.walk.keys(wide_keys, everyone)
            grad_queries = torch.zeros_like(wide_queries) if need_queries else None
            grad_scale = _walk_gradients(ctx, wide_queries, blocks, scale, grad_queries, need_keys)
            grad_keys = blocks.grad()
            factor = grads[0].to(grad_scale.dtype) * world_size() * 0.5 / ctx.n_rows
            return (
                _times(grad_queries, factor * scale, queries),
                _times(grad_keys, factor * scale, keys),
                (grad_scale * factor).to(scale.dtype).view_as(scale) if need_scale else None,
                torch.zeros_like(bias) if need_bias else None,
                None,
            )


class _Sigmoid(torch.autograd.Function):
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
            products_buffer, buffer, spare = (walk.buffer(wide_queries) for _ in range(3))
            # Nothing has to be known of other cells, so the gradient of a tile is made when its scores are.
            for tile in walk.tiles(wide_queries, blocks, grad_queries, need_keys):
                products = tile.products(products_buffer)
                scores = torch.mul(products, scale, out=tile.room(buffer))
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
                    positive_score = positive * scale if bias is None else positive * scale + bias
                    loss += F.softplus(-positive_score, threshold=50).sum()
                    pull = -torch.sigmoid(-positive_score)
                    grad_bias += pull.sum()
                    grad_scale += (pull * positive).sum()
                    grad[tile.positives] = pull.to(grad.dtype)
                tile.add_gradients(grad)
            n_queries = sum(walk.spread.query_counts)
            total = sum_plain(loss / n_queries)
        ctx.save_for_backward(queries, keys, scale, bias, grad_queries, grad_scale, grad_bias)
        ctx.blocks, ctx.n_queries = blocks, n_queries
        return total.to(wide_queries.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, scale, bias, grad_queries, grad_scale, grad_bias = ctx.saved_tensors
        _, need_keys, need_scale, need_bias, _, _ = ctx.needs_input_grad
        with torch.no_grad():
            factor = grads[0].to(grad_scale.dtype) * world_size() / ctx.n_queries
            grad_keys = ctx.blocks.grad() if need_keys else None
            return (
                _times(None if grad_queries is None else grad_queries.clone(), factor * scale, queries),
                _times(None if grad_keys is None else grad_keys.clone(), factor * scale, keys),
                (grad_scale * factor).to(scale.dtype).view_as(scale) if need_scale else None,
                (grad_bias * factor).to(bias.dtype).view_as(bias) if need_bias else None,
                None,
                None,
            )


def _times(grad: Tensor | None, factor: Tensor, like: Tensor) -> Tensor | None:
    """``grad`` times ``factor`` (1,), in place, in the dtype of ``like``."""
    return None if grad is None else grad.mul_(factor.reshape(())).to(like.dtype)


def _constant(queries: Tensor, blocks: Gathered | Ring, scale: Tensor, walk: Walk) -> _Shift:
    """The smallest constant with which no sum of exponentials overflows, the same on all ranks."""
    norms = [x.norm(dim=1).amax() if len(x) else x.new_zeros(()) for x in (queries, blocks.keys)]
    largest = max_over_ranks(torch.stack(norms)).prod()
    n = max(len(walk.spread.query_ids), len(walk.spread.key_ids), 1)
    room = 0.9 * math.log(torch.finfo(queries.dtype).max) - math.log(n)
    # a whole number: subtracting it from a score is then exact wherever the score is the larger part
    shift = (scale.reshape(()) * largest - room).clamp(min=0).ceil()
    return _Shift(shift, shift)


def _walk_sums(
    walk: Walk,
    queries: Tensor,
    blocks: Gathered | Ring,
    scale: Tensor,
    shift: _Shift,
    kept: dict[tuple[int, int], Tensor],
) -> tuple[_Sums, _Sums, bool]:
    """Sums of this rank's rows and of all ranks' columns, and whether any that counts has faded on any rank.

    Args:
        kept: takes tiles of inner products while the budget lasts, by first row and column.
    """
    spread = walk.spread
    rows = _Sums.zeros(matches(walk.query_ids, spread.key_ids), len(spread.key_ids))
    columns = _Sums.zeros(matches(spread.key_ids, spread.query_ids), len(spread.query_ids))
    budget = walk.tiling.keep_bytes
    products_buffer, buffer = walk.buffer(queries), walk.buffer(queries)
    for tile in walk.tiles(queries, blocks):
        size = len(tile.queries) * len(tile.keys) * queries.element_size()
        products = tile.products(products_buffer if size > budget else None)
        if size <= budget:
            kept[tile.rows.start, tile.columns.start] = products
            budget -= size
        by_rows, by_columns = shift.exponentials(products, scale, tile, buffer)
        if tile.positives is not None:
            row, column = tile.table_positives()
            scores = tile.positive_products(products) * scale
            row_shift, column_shift = shift.at(row, column)
            rows.add_positives(row, scores, row_shift)
            columns.add_positives(column, scores, column_shift)
            by_rows[tile.positives] = by_columns[tile.positives] = 0
        rows.negative[tile.rows] += by_rows.sum(1)
        columns.negative[tile.columns] += by_columns.sum(0)
    info = torch.finfo(queries.dtype)
    floor = info.tiny / info.eps * max(len(spread.query_ids), len(spread.key_ids), 1)
    faded = rows.faded(floor)
    if world_size() > 1:
        # One exchange: a rank whose rows have faded says so with a sum that no exponentials give.
        both = torch.stack([columns.positive, columns.negative])
        both = sum_plain(both.masked_fill(faded, torch.inf))
        columns.positive.copy_(both[0])
        columns.negative.copy_(both[1])
        faded = (columns.negative == torch.inf).any()
    return rows, columns, bool(faded | columns.faded(floor))


def _maxima(walk: Walk, queries: Tensor, blocks: Gathered | Ring, scale: Tensor) -> _Shift:
    """The largest score of every row of this rank and of every column."""
    rows = queries.new_full((len(queries),), -torch.inf)
    columns = queries.new_full((len(walk.spread.key_ids),), -torch.inf)
    buffer = walk.buffer(queries)
    for tile in walk.tiles(queries, blocks):
        scores = tile.products(buffer).mul_(scale)
        rows[tile.rows] = torch.maximum(rows[tile.rows], scores.amax(1))
        columns[tile.columns] = torch.maximum(columns[tile.columns], scores.amax(0))
    return _Shift(rows, max_over_ranks(columns))


def _loss(walk: Walk, rows: _Sums, columns: _Sums, shift: _Shift) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The global loss (), how many rows () and columns () of the whole table count, and the mean positive score ()."""
    n_rows = (matches(walk.spread.query_ids, walk.spread.key_ids) > 0).sum().clamp(min=1).to(rows.n.dtype)
    n_columns = (columns.n > 0).sum().clamp(min=1).to(rows.n.dtype)
    row_losses, _ = dense.cross_entropies(shift.rows, rows.positive, rows.negative, rows.score, rows.n)
    # A column's positive scores stay where they were found: every rank takes its own off the column's loss.
    zero = torch.zeros_like(columns.score)
    column_losses, taken = dense.cross_entropies(shift.columns, columns.positive, columns.negative, zero, columns.n)
    taken_off = torch.where(taken, columns.score / columns.n.clamp(min=1), zero)
    share = row_losses.sum() / n_rows + (column_losses[walk.own_keys].sum() - taken_off.sum()) / n_columns
    loss, score, n = sum_plain(torch.stack([0.5 * share, rows.score.sum(), rows.n.sum()]))
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
        by_rows, by_columns = shift.exponentials(products, scale, tile, buffer)
        grad = tile.room(grad_buffer)
        if by_rows is by_columns:
            torch.add(row_weights[tile.rows], column_weights[tile.columns], out=grad).mul_(by_rows)
        else:
            torch.mul(by_rows, row_weights[tile.rows], out=grad).addcmul_(by_columns, column_weights[tile.columns])
        if tile.positives is not None:
            row, column = tile.table_positives()
            positive = tile.positive_products(products)
            row_shift, column_shift = shift.at(row, column)
            of_row = rows.positive_gradients(row, positive * scale, row_shift)
            of_column = columns.positive_gradients(column, positive * scale, column_shift)
            pull = of_row + of_column * ctx.ratio
            grad_scale += (pull * (positive - ctx.center)).sum()
            grad[tile.positives] = 0
        # All gradients add up to 0, so a constant may be taken off the products: what is left does not cancel.
        apart = torch.sub(products, ctx.center, out=by_rows).mul_(grad)
        grad_scale += apart.sum(1).sum(dtype=grad_scale.dtype)
        if tile.positives is not None:
            grad[tile.positives] = pull.to(grad.dtype)
        tile.add_gradients(grad)
    return grad_scale
