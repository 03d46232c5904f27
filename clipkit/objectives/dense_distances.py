"""Objectives over distances in their dense form: margin, triplet and negative cosine.

They compare distances of unit-norm rows, |q - k|^2 = 2 - 2 <q, k>, and have neither temperature nor bias: these, and
a ``key_shift``, change nothing here and get gradients of 0. See ``clipkit.objectives.dense`` for what all share.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives.comparison import Comparison
from clipkit.objectives.dense import global_mean, idle
from clipkit.objectives.exchange import sum_plain

Mining = Literal["all", "hardest", "semihard"]


def negative_cosine(c: Comparison, dtype: torch.dtype | None = None) -> Tensor:
    """BYOL's loss (Grill et al. 2020): 2 - 2 cos, the squared distance, in the mean over the positives.

    Nothing else counts: there are no negatives.

    Args:
        c: the comparison.
        dtype: of everything after the inner products; by default theirs.

    Returns:
        () float, in 0 ... 4; 0 without a positive.
    """
    positive_QM, products_QM = c.positives(), c.products(dtype)
    share = (2 - 2 * products_QM)[positive_QM].sum() / _total(positive_QM.sum(), products_QM)
    return global_mean(share) + idle(c).to(share.dtype)


def margin(c: Comparison, margin: float = 0.5, dtype: torch.dtype | None = None) -> Tensor:
    """Contrastive loss (Hadsell et al. 2006): positives together, negatives at least ``margin`` apart.

    With the Euclidean distance d of unit-norm rows a positive costs d^2 / 2 and a negative max(0, margin - d)^2 / 2.
    Hadsell et al. add up the pairs that they are given, of either kind. In a table the negatives are many more, and
    most of them far away: so the positives and those negatives that are closer than ``margin`` are averaged apart, and
    the two averages added.

    Args:
        c, dtype: as of ``negative_cosine``.
        margin: a distance, in 0 ... 2.

    Returns:
        () float, nonnegative.
    """
    products_QM, negative_QM = c.products(dtype), c.negatives()
    squared_QM = (2 - 2 * products_QM).clamp(min=0)
    # At a distance of 0 the square root has no derivative; there is no way to go either, and the gradient is 0.
    distance_QM = squared_QM.masked_fill(squared_QM == 0, 1).sqrt().masked_fill(squared_QM == 0, 0)
    close_QM = negative_QM & (distance_QM < margin)
    share = (margin - distance_QM)[close_QM].square().sum() / 2 / _total(close_QM.sum(), products_QM)
    return 0.5 * negative_cosine(c, dtype) + global_mean(share)


def triplet(c: Comparison, margin: float = 0.2, mining: Mining = "all", dtype: torch.dtype | None = None) -> Tensor:
    """Triplet loss (FaceNet, Schroff et al. 2015): max(0, d(a, p) - d(a, n) + margin), d the *squared* distance.

    The anchors are the queries, the positives and negatives their row's cells. ``mining`` says which triplets:

    - "all": every one, in the mean over those whose loss is not 0 (batch all, Hermans et al. 2017).
    - "hardest": the farthest positive and the closest negative of each anchor, in the mean over the anchors (batch
      hard, Hermans et al. 2017).
    - "semihard": with each positive the closest negative that is farther than it (FaceNet), or, where none is, the
      farthest (as TensorFlow Addons' ``triplet_semihard_loss`` has it), in the mean over the positives.

    Anchors without a positive or without a negative do not count.

    Args:
        c, dtype: as of ``negative_cosine``.
        margin: a squared distance, in 0 ... 4.
        mining: which triplets.

    Returns:
        () float, nonnegative.
    """
    distance_QM, positive_QM, negative_QM = 2 - 2 * c.products(dtype), c.positives(), c.negatives()
    useful_Q = positive_QM.any(1) & negative_QM.any(1)
    distance_QM, positive_QM, negative_QM = (x[useful_Q] for x in (distance_QM, positive_QM, negative_QM))
    row_P, column_P = positive_QM.nonzero(as_tuple=True)
    negatives_QM = distance_QM.masked_fill(~negative_QM, torch.inf)
    if mining == "all":
        violation_PM = distance_QM[row_P, column_P][:, None] - negatives_QM[row_P] + margin
        losses = violation_PM[violation_PM > 0]
    elif mining == "hardest":
        farthest_Q = _at(distance_QM, distance_QM.masked_fill(~positive_QM, -torch.inf).detach(), "max")
        losses = F.relu(farthest_Q - _at(distance_QM, negatives_QM.detach(), "min") + margin)
    else:
        of_P, distance_P = negatives_QM[row_P], distance_QM[row_P, column_P]
        farther_PM = of_P.detach().masked_fill(of_P <= distance_P[:, None], torch.inf)
        closest_P = _at(of_P, farther_PM, "min")
        farthest_P = _at(of_P, of_P.detach().masked_fill(of_P == torch.inf, -torch.inf), "max")
        none_P = farther_PM.new_full((len(farther_PM), 1), torch.inf)
        found_P = torch.cat([farther_PM, none_P], 1).amin(1) < torch.inf
        losses = F.relu(distance_P - torch.where(found_P, closest_P, farthest_P) + margin)
    n = torch.tensor(len(losses), device=losses.device)
    return global_mean(losses.sum() / _total(n, losses)) + idle(c).to(losses.dtype)


def _total(n: Tensor, like: Tensor) -> Tensor:
    """All ranks' ``n`` (), at least 1, in the dtype of ``like``."""
    return sum_plain(n.to(like.dtype)).clamp(min=1)


def _at(x: Tensor, by: Tensor, which: Literal["min", "max"]) -> Tensor:
    """(N,) the cell of each row of ``x`` (N, M) where ``by`` is smallest or largest, the first of several."""
    if not len(x):
        return x.sum(1)  # nothing, in the graph
    place = by.argmin(1) if which == "min" else by.argmax(1)
    return x.gather(1, place[:, None])[:, 0]
