"""Objectives in their dense form: the table is made, and the loss is read off it.

Every function takes a ``Comparison`` and returns the loss of the *global* batch on every rank. Its gradient is W
times this rank's share, because DDP and FSDP average gradients over ranks: what the optimizer sees is then exactly
the gradient of one process with the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import max_over_ranks, sum_over_ranks, world_size


def infonce(c: Comparison) -> Tensor:
    """Symmetric InfoNCE: the mean of both directions' cross-entropy.

    van den Oord et al. 2018 (InfoNCE), Radford et al. 2021 (symmetric, CLIP). With several positives per row it is
    SupCon's L_out (Khosla et al. 2020): L_i = lse_i - (1/n_i) sum over positives of s_ip, the other positives stay
    in the denominator, rows without a positive do not count, and the sum is divided by the number of rows that do.

    Returns:
        () float, nonnegative.
    """
    scores_QK = c.scores()
    positive_QK = c.positives()
    weight_QK = positive_QK.to(scores_QK.dtype)

    n_Q = weight_QK.sum(1)
    rows = _masked_mean_terms(torch.logsumexp(scores_QK, 1), (scores_QK * weight_QK).sum(1), n_Q)

    # A column is split over the ranks: its maximum, sum of exponentials and positives are added up.
    top_K = max_over_ranks(scores_QK.max(0).values)
    totals = torch.stack([(scores_QK - top_K).exp().sum(0), (scores_QK * weight_QK).sum(0), weight_QK.sum(0)])
    sum_K, positive_K, n_K = sum_over_ranks(totals)
    columns = _masked_mean_terms(top_K + sum_K.log(), positive_K, n_K)[c.own_keys]

    n_rows = sum_over_ranks((n_Q > 0).sum().to(scores_QK.dtype)).clamp(min=1)
    n_columns = (n_K > 0).sum().clamp(min=1)
    return _global(0.5 * (rows.sum() / n_rows + columns.sum() / n_columns))


def sigmoid(c: Comparison) -> Tensor:
    """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023): every cell is a yes-or-no question.

    The sum over all cells of -log sigmoid(z s), z = 1 for a positive and -1 for the rest, divided by the number of
    queries in the global batch.

    Returns:
        () float, nonnegative.
    """
    scores_QK = c.scores()
    signs_QK = c.positives().to(scores_QK.dtype) * 2 - 1
    n_queries = sum_over_ranks(scores_QK.new_tensor(float(len(scores_QK))))
    return _global(-F.logsigmoid(signs_QK * scores_QK).sum() / n_queries)


def _masked_mean_terms(lse: Tensor, positive_sum: Tensor, n: Tensor) -> Tensor:
    """lse - mean positive score for rows with a positive, 0 for the others."""
    return torch.where(n > 0, lse - positive_sum / n.clamp(min=1), torch.zeros_like(lse))


def _global(share: Tensor) -> Tensor:
    """The sum of the ranks' shares as value, W times this rank's share as gradient."""
    if world_size() == 1:
        return share
    gradient = share * world_size()
    return sum_over_ranks(share.detach()) + (gradient - gradient.detach())  # the same bits on every rank
