"""The objectives: tiled, in memory that does not hold the table, or dense where the table is small."""

from __future__ import annotations

import torch
from torch import Tensor

from clipkit.objectives import dense
from clipkit.objectives.comparison import Comparison
from clipkit.objectives.exchange import world_size
from clipkit.objectives.tiled_infonce import TiledInfoNCE
from clipkit.objectives.tiled_sigmoid import TiledSigmoid
from clipkit.objectives.walk import SMALL, Tiling, Walk, wide


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
    return TiledInfoNCE.apply(c.queries, c.keys, _scale(c), c.bias, Walk(c, tiling))


def sigmoid(c: Comparison, tiling: Tiling | None = None) -> Tensor:
    """Pairwise sigmoid loss; see ``clipkit.objectives.dense.sigmoid``. Arguments and result as of ``infonce``."""
    if tiling is None and _is_small(c):
        return _narrow(dense.sigmoid(c, wide(c.queries.device)), c)
    return TiledSigmoid.apply(c.queries, c.keys, _scale(c), c.bias, Walk(c, tiling), torch.is_grad_enabled())


def _is_small(c: Comparison) -> bool:
    """Whether the dense form costs less: below this, walking takes longer than the arithmetic.

    Only on one process: the tiled form's exchanges are fewer and smaller, and all ranks have to take the same. And not
    under autocast, which would reach the dense form's products if the backward pass is called there too.
    """
    apart = world_size() > 1 or torch.is_autocast_enabled(c.queries.device.type)
    return not apart and len(c.queries) * len(c.keys) < SMALL


def _scale(c: Comparison) -> Tensor:
    """(1,) as the scores use it, from an exp in float64: float32's is off by more than a score's last bit."""
    return _narrow(c.log_scale.to(wide(c.queries.device)).exp(), c)


def _narrow(x: Tensor, c: Comparison) -> Tensor:
    """``x`` in the dtype of the scores."""
    return x if torch.float64 in (c.queries.dtype, c.keys.dtype) else x.float()
