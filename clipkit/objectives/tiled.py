"""The objectives: tiled, in memory that does not hold the table, or dense where the table is small."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.objectives import dense, dense_distances
from clipkit.objectives.comparison import Comparison
from clipkit.objectives.dense import Directions, idle
from clipkit.objectives.dense_distances import Mining
from clipkit.objectives.exchange import world_size
from clipkit.objectives.hard import hard_infonce_of
from clipkit.objectives.log_sums import LogSums, log_sums
from clipkit.objectives.tile import Tiling, wide
from clipkit.objectives.tiled_distances import NegativeCosine, TiledMargin
from clipkit.objectives.tiled_infonce import TiledInfoNCE
from clipkit.objectives.tiled_log_sums import tiled_log_sums
from clipkit.objectives.tiled_sigmoid import TiledSigmoid
from clipkit.objectives.tiled_triplet import TiledTriplet
from clipkit.objectives.walk import SMALL, Walk


def infonce(c: Comparison, tiling: Tiling | None = None, directions: Directions = "both") -> Tensor:
    """InfoNCE, symmetric or of the rows alone (NT-Xent, SupCon, MoCo, logQ); see ``clipkit.objectives.dense.infonce``.

    Args:
        c: the comparison.
        tiling: how the table is cut and how much of it is kept; by default what suits the device.
        directions: "rows", every query among the keys, or "both", every key among the queries too.

    Returns:
        () loss of the global batch on every rank, float32 (float64 for float64 input); its gradient is W times this
        rank's share, as DDP and FSDP average over ranks.
    """
    _one_of("directions", directions, ("rows", "both"))
    if tiling is None and _is_small(c):
        return narrow(dense.infonce(c, wide(c.queries.device), directions), c)
    return TiledInfoNCE.apply(c.queries, c.keys, _scale(c), c.bias, Walk(c, tiling), directions == "both")


def sigmoid(c: Comparison, tiling: Tiling | None = None) -> Tensor:
    """Pairwise sigmoid loss; see ``clipkit.objectives.dense.sigmoid``. Arguments and result as of ``infonce``."""
    if tiling is None and _is_small(c):
        return narrow(dense.sigmoid(c, wide(c.queries.device)), c)
    return TiledSigmoid.apply(c.queries, c.keys, _scale(c), c.bias, Walk(c, tiling), torch.is_grad_enabled())


def negative_cosine(c: Comparison, tiling: Tiling | None = None) -> Tensor:
    """BYOL's loss; see ``clipkit.objectives.dense_distances.negative_cosine``. Arguments and result as of
    ``infonce``."""
    if tiling is None and _is_small(c):
        return narrow(dense_distances.negative_cosine(c, wide(c.queries.device)), c)
    value = NegativeCosine.apply(c.queries, c.keys, Walk(c, tiling), torch.is_grad_enabled())
    return value + narrow(idle(c), c)


def margin(c: Comparison, margin: float = 0.5, tiling: Tiling | None = None) -> Tensor:
    """Contrastive (margin) loss; see ``clipkit.objectives.dense_distances.margin``.

    Args:
        c, tiling: as of ``infonce``.
        margin: the Euclidean distance from which on negatives cost nothing, in 0 ... 2.

    Returns:
        As of ``infonce``.

    Raises:
        ClipkitError: a margin that is not above 0.
    """
    _positive("margin", margin)
    if tiling is None and _is_small(c):
        return narrow(dense_distances.margin(c, margin, wide(c.queries.device)), c)
    # A positive's half of the squared distance is half of the negative cosine.
    negatives = TiledMargin.apply(c.queries, c.keys, margin, Walk(c, tiling), torch.is_grad_enabled())
    return 0.5 * negative_cosine(c, tiling or Tiling()) + negatives


def triplet(c: Comparison, margin: float = 0.2, mining: Mining = "all", tiling: Tiling | None = None) -> Tensor:
    """Triplet loss; see ``clipkit.objectives.dense_distances.triplet``.

    Args:
        c, tiling: as of ``infonce``.
        margin: how much farther a negative has to be, in squared distance.
        mining: "all", "hardest" or "semihard".

    Returns:
        As of ``infonce``.

    Raises:
        ClipkitError: a margin that is not above 0, another mining.
    """
    _positive("margin", margin)
    _one_of("mining", mining, ("all", "hardest", "semihard"))
    if tiling is None and _is_small(c):
        return narrow(dense_distances.triplet(c, margin, mining, wide(c.queries.device)), c)
    walk = Walk(c, tiling)
    value = TiledTriplet.apply(c.queries, c.keys, margin, mining, walk, torch.is_grad_enabled())
    return value + narrow(idle(c), c)


def hard_infonce(
    c: Comparison,
    beta: float = 1.0,
    tau_plus: float = 0.0,
    directions: Directions = "both",
    tiling: Tiling | None = None,
) -> Tensor:
    """InfoNCE whose negatives weigh the more the harder they are (Robinson et al. 2021).

    Each negative's exp(s) is weighted with exp(beta s), the weights of a row being 1 in the mean. With ``tau_plus``
    the part of the negatives that are positives in truth is taken off (Chuang et al. 2020). With both 0 it is
    ``infonce``.

    Args:
        c, tiling, directions: as of ``infonce``.
        beta: how much; 0 weighs all alike.
        tau_plus: probability that a negative is of the query's own class, in [0, 1).

    Returns:
        As of ``infonce``.

    Raises:
        ClipkitError: numbers outside their ranges.
    """
    _one_of("directions", directions, ("rows", "both"))
    if not 0 <= tau_plus < 1:
        raise ClipkitError(f"tau_plus={tau_plus}: expected a probability, at least 0 and below 1")
    if not beta >= 0:
        raise ClipkitError(f"beta={beta}: expected 0 or more")
    sums = log_sums_of(c, (1 + beta, beta), tiling, directions)
    return narrow(hard_infonce_of(c, sums, tau_plus, directions), c)


def log_sums_of(
    c: Comparison, exponents: tuple[float, ...], tiling: Tiling | None, directions: Directions = "both"
) -> tuple[LogSums, LogSums]:
    """``log_sums`` of rows and columns, from the table or from tiles of it."""
    if tiling is None and _is_small(c):
        return log_sums(c, exponents, wide(c.queries.device))
    return tiled_log_sums(c.queries, c.keys, _scale(c), Walk(c, tiling), exponents, directions == "both")


def _is_small(c: Comparison) -> bool:
    """Whether the dense form costs less: below this, walking takes longer than the arithmetic.

    Only on one process: the tiled form's exchanges are fewer and smaller, and all ranks have to take the same. And not
    under autocast, which would reach the dense form's products if the backward pass is called there too.
    """
    apart = world_size() > 1 or torch.is_autocast_enabled(c.queries.device.type)
    return not apart and len(c.queries) * (len(c.keys) + (0 if c.queue is None else len(c.queue))) < SMALL


def _scale(c: Comparison) -> Tensor:
    """(1,) as the scores use it, from an exp in float64: float32's is off by more than a score's last bit."""
    return narrow(c.log_scale.to(wide(c.queries.device)).exp(), c)


def narrow(x: Tensor, c: Comparison) -> Tensor:
    """``x`` in the dtype of the scores."""
    return x if torch.float64 in (c.queries.dtype, c.keys.dtype) else x.float()


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ClipkitError(f"{name}={value}: expected a number above 0")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ClipkitError(f"{name}={value!r}: expected one of {', '.join(known)}")
