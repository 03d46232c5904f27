"""Step 3, compare: the comparison table and the losses over it, on one device or many."""

from clipkit.objectives.comparison import Comparison, compare
from clipkit.objectives.drop_in import ClipLoss, SigLipLoss
from clipkit.objectives.exchange import gather_rows, sum_over_ranks
from clipkit.objectives.global_contrastive import GlobalContrastive, falling_gamma
from clipkit.objectives.tables import (
    Compare,
    labels_table,
    momentum_table,
    pairs_and_views_table,
    pairs_both_ways_and_views_table,
    pairs_both_ways_table,
    pairs_table,
    sentences_table,
    targets_table,
    views_table,
)
from clipkit.objectives.tile import Tiling
from clipkit.objectives.tiled import hard_infonce, infonce, margin, negative_cosine, sigmoid, triplet

__all__ = [
    "ClipLoss",
    "Compare",
    "Comparison",
    "GlobalContrastive",
    "SigLipLoss",
    "Tiling",
    "compare",
    "falling_gamma",
    "gather_rows",
    "hard_infonce",
    "infonce",
    "labels_table",
    "margin",
    "momentum_table",
    "negative_cosine",
    "pairs_and_views_table",
    "pairs_both_ways_and_views_table",
    "pairs_both_ways_table",
    "pairs_table",
    "sentences_table",
    "sigmoid",
    "sum_over_ranks",
    "targets_table",
    "triplet",
    "views_table",
]
