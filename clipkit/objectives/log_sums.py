"""What several objectives read off the table: log-sum-exps of rows and columns, dense and with gradients.

An objective that is a function of these (``clipkit.objectives.hard``, ``clipkit.objectives.global_contrastive``) is
written once; whether the sums come from a table (here) or from tiles of it (``clipkit.objectives.tiled_log_sums``),
it does not see.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import max_over_ranks, sum_over_ranks


@dataclass(frozen=True)
class LogSums:
    """Of N rows (this rank's) or columns (everybody's, the same on every rank); -inf where there is nothing to sum.

    Attributes:
        negatives: for each exponent a (N,), log of the sum over the negatives of exp(a s).
        positive, inverse: (N,), log of the sum over the positives of exp(s) and of exp(-s).
        score: (N,), sum of the positives' scores.
        n, others: (N,), how many positives and negatives there are.
    """

    negatives: list[Tensor]
    positive: Tensor
    inverse: Tensor
    score: Tensor
    n: Tensor
    others: Tensor

    def finite(self) -> LogSums:
        """The same with 0 for sums of nothing and 1 for their number, so that their gradients are 0 and not NaN."""
        lonely, alone = self.n == 0, self.others == 0
        positive, inverse, score = (x.masked_fill(lonely, 0) for x in (self.positive, self.inverse, self.score))
        return LogSums(
            [x.masked_fill(alone, 0) for x in self.negatives],
            positive,
            inverse,
            score,
            self.n.masked_fill(lonely, 1),
            self.others.masked_fill(alone, 1),
        )


def log_sums(c: Comparison, exponents: tuple[float, ...], dtype: torch.dtype | None = None) -> tuple[LogSums, LogSums]:
    """The sums of this rank's rows and of everybody's columns, from the table; without the bias, as in all that is made
    of them only differences of scores count.

    Args:
        c: the comparison.
        exponents: a of each sum over the negatives.
        dtype: of everything after the inner products; by default theirs.
    """
    scores_QM, positive_QM, negative_QM = c.scores(dtype, biased=False), c.positives(), c.negatives()
    rows = _of(scores_QM, positive_QM, negative_QM, exponents, 1)
    n = len(c.spread.key_ids)
    return rows, _of(scores_QM[:, :n], positive_QM[:, :n], negative_QM[:, :n], exponents, 0)


def _of(scores: Tensor, positive: Tensor, negative: Tensor, exponents: tuple[float, ...], dim: int) -> LogSums:
    def total(x: Tensor) -> Tensor:
        return x.sum(1) if dim == 1 else sum_over_ranks(x.sum(0))  # a column is split over the ranks

    def log_sum(x: Tensor, mask: Tensor) -> Tensor:
        x = x.masked_fill(~mask, -torch.inf)
        edge = x.new_full((x.shape[0], 1) if dim == 1 else (1, x.shape[1]), -torch.inf)  # for tables without cells
        top = torch.cat([x.detach(), edge], dim).amax(dim)
        top = top if dim == 1 else max_over_ranks(top)
        finite = top.masked_fill(top == -torch.inf, 0)
        summed = total((x - finite.unsqueeze(dim)).exp())
        return (summed.masked_fill(summed == 0, 1).log() + finite).masked_fill(summed == 0, -torch.inf)

    yes = positive.to(scores.dtype)
    return LogSums(
        [log_sum(a * scores, negative) for a in exponents],
        log_sum(scores, positive),
        log_sum(-scores, positive),
        total(scores * yes),
        total(yes),
        total(negative.to(scores.dtype)),
    )
