"""Objectives in their dense form: the table is made, and the loss is read off it.

This is what each objective *is*, in a few lines, and what its tiled form is tested against, in float64. It is exact
on any number of processes, but holds the whole table of Q x K scores.

Every function takes a ``Comparison`` and returns the loss of the *global* batch on every rank. Its gradient is W
times this rank's share, because DDP and FSDP average gradients over ranks: what the optimizer sees is then exactly
the gradient of one process with the whole batch.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import max_over_ranks, sum_over_ranks, sum_plain, world_size

Directions = Literal["rows", "both"]


def infonce(c: Comparison, dtype: torch.dtype | None = None, directions: Directions = "both") -> Tensor:
    """InfoNCE: the mean cross-entropy of the rows, or of both directions (symmetric).

    van den Oord et al. 2018 (InfoNCE), Radford et al. 2021 (symmetric, CLIP). With several positives per row it is
    SupCon's L_out (Khosla et al. 2020): L_i = lse_i - (1/n_i) sum over positives of s_ip, the other positives stay
    in the denominator, rows without a positive do not count, and the sum is divided by the number of rows that do.

    Other names for the rows of it: NT-Xent (SimCLR, Chen et al. 2020) and SupCon, both views stacked and
    ``itself=True``, with pictures or labels as ids; MoCo's (He et al. 2020), over a ``queue``; the logQ-corrected
    sampled softmax (Yi et al. 2019), with a ``key_shift``.

    Args:
        c: the comparison.
        dtype: of everything after the inner products; by default theirs.
        directions: "rows", every query among the keys, or "both", every key among the queries too.

    Returns:
        () float, nonnegative.
    """
    scores_QM, positive_QM, negative_QM = c.scores(dtype), c.positives(), c.negatives()
    counting_QM = scores_QM.detach().masked_fill(~(positive_QM | negative_QM), -torch.inf)
    top_Q = _finite(torch.cat([counting_QM, counting_QM.new_full((len(counting_QM), 1), -torch.inf)], 1).amax(1))
    sums_Q = _sums(scores_QM, positive_QM, negative_QM, top_Q[:, None], 1)
    rows_Q, _ = cross_entropies(top_Q, *sums_Q)
    row_loss = rows_Q.sum() / sum_plain((sums_Q[-1] > 0).sum().to(scores_QM.dtype)).clamp(min=1)
    if directions == "rows":
        return global_mean(row_loss)

    # A column is split over the ranks: its maximum and its sums are put together. The queue's are nobody's to learn.
    n = len(c.spread.key_ids)
    none = scores_QM.new_full((1, n), -torch.inf)
    top_K = _finite(max_over_ranks(torch.cat([counting_QM[:, :n], none]).amax(0)))
    sums_K = torch.stack(_sums(scores_QM[:, :n], positive_QM[:, :n], negative_QM[:, :n], top_K, 0))
    sums_K = sum_over_ranks(sums_K)
    columns_K, _ = cross_entropies(top_K, *sums_K)
    column_loss = columns_K[c.own_keys].sum() / (sums_K[-1] > 0).sum().clamp(min=1)
    return global_mean(0.5 * (row_loss + column_loss))


def sigmoid(c: Comparison, dtype: torch.dtype | None = None) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023): every cell is a yes-or-no question.

    The sum over all counting cells of -log sigmoid(z s), z = 1 for a positive and -1 for the rest, divided by the
    number of queries in the global batch.

    Args:
        c, dtype: as of ``infonce``.

    Returns:
        () float, nonnegative.
    """
    scores_QM = c.scores(dtype)
    signs_QM = c.positives().to(scores_QM.dtype) * 2 - 1
    losses_QM = F.softplus(-signs_QM * scores_QM, threshold=50) * c.counts()
    return global_mean(losses_QM.sum() / sum(c.spread.query_counts))


def cross_entropies(
    shift: Tensor, positive: Tensor, negative: Tensor, score: Tensor, n: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each row (or column) from its sums, without cancellation where the positives win.

    With A = sum of exp(s - shift) over the positives, R = the same over the negatives and S = the sum of the
    positives' scores, L = log(A + R) + shift - S/n = log(1 + R/A) + (log A + shift - S/n), and for a single positive
    the bracket is 0. So d L / d s = -R / (A + R) there, and not a difference of two numbers close to 1.

    Args:
        shift, positive (A), negative (R), score (S), n: (N,) each.

    Returns:
        (N,) cross-entropies, 0 where n is 0; and (N,) bool, whether ``score`` is in them.
    """
    won = (positive >= negative) & (positive > 0)
    safe = torch.where(won, positive, torch.ones_like(positive))
    mean_score = score / n.clamp(min=1)
    spread = torch.where(n == 1, torch.zeros_like(score), safe.log() + shift - mean_score)
    lost = torch.where(won | (n == 0), torch.ones_like(positive), positive + negative).log() + shift - mean_score
    loss = torch.where(won, torch.log1p(negative / safe) + spread, lost)
    return torch.where(n > 0, loss, torch.zeros_like(loss)), (n > 0) & ~(won & (n == 1))


def _sums(
    scores: Tensor, positive: Tensor, negative: Tensor, shift: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, R, S and n of ``cross_entropies``, summed over ``dim``."""
    exp = (scores - shift).masked_fill(~(positive | negative), -torch.inf).exp()
    yes = positive.to(scores.dtype)
    return (exp * yes).sum(dim), (exp * (1 - yes)).sum(dim), (scores * yes).sum(dim), yes.sum(dim)


def _finite(top: Tensor) -> Tensor:
    """0 where no cell counts and there is no maximum."""
    return top.masked_fill(top == -torch.inf, 0)


def global_mean(share: Tensor) -> Tensor:
    """The sum of the ranks' shares as value, W times this rank's share as gradient."""
    if world_size() == 1:
        return share
    gradient = share * world_size()
    return sum_plain(share.detach()) + (gradient - gradient.detach())  # the same bits on every rank


def idle(c: Comparison) -> Tensor:
    """() 0 in the graph of what a loss does not use, so that DDP does not wait for a gradient."""
    unused = 0 * c.log_scale.sum()
    return unused if c.bias is None else unused + 0 * c.bias.sum()
