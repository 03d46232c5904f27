"""Step 3, compare: the comparison table and the losses over it, on one device or many."""

from clipkit.objectives.comparison import Comparison, compare
from clipkit.objectives.drop_in import ClipLoss, SigLipLoss
from clipkit.objectives.exchange import gather_rows, sum_over_ranks
from clipkit.objectives.global_contrastive import GlobalContrastive
from clipkit.objectives.tile import Tiling
from clipkit.objectives.tiled import hard_infonce, infonce, margin, negative_cosine, sigmoid, triplet

__all__ = [
    "ClipLoss",
    "Comparison",
    "GlobalContrastive",
    "SigLipLoss",
    "Tiling",
    "compare",
    "gather_rows",
    "hard_infonce",
    "infonce",
    "margin",
    "negative_cosine",
    "sigmoid",
    "sum_over_ranks",
    "triplet",
]
