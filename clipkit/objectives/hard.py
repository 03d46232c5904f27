"""InfoNCE with hard negatives weighted in the batch, as a function of the table's log-sum-exps."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives.comparison import Comparison
from clipkit.objectives.dense import Directions, global_mean, idle
from clipkit.objectives.exchange import sum_plain
from clipkit.objectives.log_sums import LogSums


def hard_infonce_of(c: Comparison, sums: tuple[LogSums, LogSums], tau_plus: float, directions: Directions) -> Tensor:
    """The loss from the sums of rows and columns for the exponents (1 + beta, beta); see ``hard_infonce``."""
    scale = c.log_scale.to(sums[0].score.dtype).exp()
    rows_Q = _cross_entropies(sums[0], scale, tau_plus)
    row_loss = rows_Q.sum() / sum_plain((sums[0].n > 0).sum().to(rows_Q.dtype)).clamp(min=1)
    if directions == "rows":
        return global_mean(row_loss) + idle(c).to(row_loss.dtype)
    columns_K = _cross_entropies(sums[1], scale, tau_plus)
    column_loss = columns_K[c.own_keys].sum() / (sums[1].n > 0).sum().clamp(min=1)
    return global_mean(0.5 * (row_loss + column_loss)) + idle(c).to(row_loss.dtype)


def _cross_entropies(sums: LogSums, scale: Tensor, tau_plus: float) -> Tensor:
    """(N,): log(A + R) - S/n with A and S the sums over n positives, and R what the negatives add up to:

    N sum(w e^s) / sum(w) over the N negatives, w = e^(beta s), less the part tau_plus of it that are positives in
    truth, and no less than N times the smallest e^s that there is.
    """
    s = sums.finite()
    log_n = s.others.log()
    negatives = s.negatives[0] - s.negatives[1] + log_n
    # Of a single positive the sum is its score; written so, nothing cancels in its gradient.
    positive = torch.where(s.n == 1, s.score, s.positive)
    if tau_plus:
        shift = torch.maximum(negatives, positive + log_n).detach()
        part = (negatives - shift).exp() - tau_plus * (positive - s.n.log() + log_n - shift).exp()
        log_part = part.clamp(min=torch.finfo(part.dtype).tiny).log() + shift - math.log1p(-tau_plus)
        floor = log_n - scale
        negatives = torch.where((part > 0) & (log_part > floor), log_part, floor)
    negatives = negatives.masked_fill(sums.others == 0, -torch.inf)
    losses = F.softplus(negatives - positive, threshold=50) + (positive - s.score / s.n)
    return losses.masked_fill(sums.n == 0, 0)
