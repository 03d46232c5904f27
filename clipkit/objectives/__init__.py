"""Step 3, compare: the comparison table and the losses over it, on one device or many."""

from clipkit.objectives.comparison import Comparison, compare
from clipkit.objectives.drop_in import ClipLoss, SigLipLoss
from clipkit.objectives.exchange import gather_rows, sum_over_ranks
from clipkit.objectives.tables import (
    Compare,
    labels_table,
    momentum_table,
    pairs_and_views_table,
    pairs_table,
    sentences_table,
    targets_table,
    views_table,
)
from clipkit.objectives.tiled import infonce, sigmoid
from clipkit.objectives.walk import Tiling

__all__ = [
    "ClipLoss",
    "Compare",
    "Comparison",
    "SigLipLoss",
    "Tiling",
    "compare",
    "gather_rows",
    "infonce",
    "labels_table",
    "momentum_table",
    "pairs_and_views_table",
    "pairs_table",
    "sentences_table",
    "sigmoid",
    "sum_over_ranks",
    "targets_table",
    "views_table",
]
