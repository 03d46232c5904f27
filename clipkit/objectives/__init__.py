"""Step 3, compare: the comparison table and the losses over it, on one device or many."""

from clipkit.objectives.comparison import Comparison, compare
from clipkit.objectives.dense import infonce, sigmoid
from clipkit.objectives.exchange import gather_rows, sum_over_ranks

__all__ = ["Comparison", "compare", "gather_rows", "infonce", "sigmoid", "sum_over_ranks"]
