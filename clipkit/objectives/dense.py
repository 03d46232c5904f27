"""Objectives in their dense form: the table is made, and the loss is read off it.

This is what each objective *is*, in a few lines, and what its tiled form is tested against, in float64. It is exact
on any number of processes, but holds the whole table of Q x K scores.

Every function takes a ``Comparison`` and returns the loss of the *global* batch on every rank. Its gradient is W
times this rank's share, because DDP and FSDP average gradients over ranks: what the optimizer sees is then exactly
the gradient of one process with the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import max_over_ranks, sum_over_ranks, sum_plain, world_size


def infonce(c: Comparison, dtype: torch.dtype | None = None) -> Tensor:
    """Symmetric InfoNCE: the mean of both directions' cross-entropy.

    van den Oord et al. 2018 (InfoNCE), Radford et al. 2021 (symmetric, CLIP). With several positives per row it is
    SupCon's L_out (Khosla et al. 2020): L_i = lse_i - (1/n_i) sum over positives of s_ip, the other positives stay
    in the denominator, rows without a positive do not count, and the sum is divided by the number of rows that do.

    Args:
        c: the comparison.
        dtype: of everything after the inner products; by default theirs.

    Returns:
        () float, nonnegative.
    """
    scores_QK, positive_QK = c.scores(dtype), c.positives()
    top_Q = scores_QK.detach().amax(1) if scores_QK.shape[1] else scores_QK.new_zeros(len(scores_QK))
    sums_Q = _sums(scores_QK, positive_QK, top_Q[:, None], 1)
    rows_Q, _ = cross_entropies(top_Q, *sums_Q)

    # A column is split over the ranks: its maximum and its sums are put together.
    none = scores_QK.new_full((1, scores_QK.shape[1]), -torch.inf)
    top_K = max_over_ranks(torch.cat([scores_QK.detach(), none]).amax(0))
    sums_K = sum_over_ranks(torch.stack(_sums(scores_QK, positive_QK, top_K, 0)))
    columns_K, _ = cross_entropies(top_K, *sums_K)

    n_rows = sum_plain((sums_Q[-1] > 0).sum().to(scores_QK.dtype)).clamp(min=1)
    n_columns = (sums_K[-1] > 0).sum().clamp(min=1)
    return global_mean(0.5 * (rows_Q.sum() / n_rows + columns_K[c.own_keys].sum() / n_columns))


def sigmoid(c: Comparison, dtype: torch.dtype | None = None) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023): every cell is a yes-or-no question.

    The sum over all cells of -log sigmoid(z s), z = 1 for a positive and -1 for the rest, divided by the number of
    queries in the global batch.

    Args:
        c, dtype: as of ``infonce``.

    Returns:
        () float, nonnegative.
    """
    scores_QK = c.scores(dtype)
    signs_QK = c.positives().to(scores_QK.dtype) * 2 - 1
    return global_mean(F.softplus(-signs_QK * scores_QK, threshold=50).sum() / sum(c.spread.query_counts))


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


def _sums(scores: Tensor, positive: Tensor, shift: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A, R, S and n of ``cross_entropies``, summed over ``dim``."""
    exp, yes = (scores - shift).exp(), positive.to(scores.dtype)
    return (exp * yes).sum(dim), (exp * (1 - yes)).sum(dim), (scores * yes).sum(dim), yes.sum(dim)


def global_mean(share: Tensor) -> Tensor:
    """The sum of the ranks' shares as value, W times this rank's share as gradient."""
    if world_size() == 1:
        return share
    gradient = share * world_size()
    return sum_plain(share.detach()) + (gradient - gradient.detach())  # the same bits on every rank
