"""Recommendation with leave-one-out: where does the item that a user took last come in the ranking of all others?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import as_numpy, finite_rows, indices
from clipkit.evaluation.intervals import Interval, bootstrap_shares, check_draws
from clipkit.evaluation.ranks import TIE

_CELLS = 4_000_000  # scores held at once: 32 MB of float64


@dataclass(frozen=True)
class RecommendationReport:
    """Recall@k and NDCG@k over users with 95 % intervals, beside those of a random ranking.

    Attributes:
        recall, ndcg: by k; chance_recall, chance_ndcg: their expectation when the candidates are in random order.
        rank_U: the rank of each user's held-out item among its candidates, from 1; int64.
    """

    recall: dict[int, Interval]
    ndcg: dict[int, Interval]
    chance_recall: dict[int, float]
    chance_ndcg: dict[int, float]
    n_users: int
    n_items: int
    protocol: str
    rank_U: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON, the ks as strings."""
        return {
            "kind": "recommendation",
            "recall": {str(k): interval.to_dict() for k, interval in self.recall.items()},
            "ndcg": {str(k): interval.to_dict() for k, interval in self.ndcg.items()},
            "chance_recall": {str(k): chance for k, chance in self.chance_recall.items()},
            "chance_ndcg": {str(k): chance for k, chance in self.chance_ndcg.items()},
            "n_users": self.n_users,
            "n_items": self.n_items,
            "protocol": self.protocol,
        }

    def metrics(self) -> dict[str, float]:
        """The figures alone under flat names such as "recall@10", for a line of metrics.jsonl."""
        flat = {f"recall@{k}": interval.value for k, interval in self.recall.items()}
        return flat | {f"ndcg@{k}": interval.value for k, interval in self.ndcg.items()}

    def __str__(self) -> str:
        def row(figures: dict[int, Interval], chances: dict[int, float]) -> str:
            return ", ".join(f"@{k} {figures[k]} (chance {100 * chances[k]:.2g} %)" for k in figures)

        return (
            f"recall {row(self.recall, self.chance_recall)}; NDCG {row(self.ndcg, self.chance_ndcg)}; "
            f"{self.n_users:,} users, {self.n_items:,} items"
        )


def recommendation(
    user_UD: Any,
    item_ID: Any,
    held_out_U: Any,
    seen: Sequence[Any],
    ks: Sequence[int] = (10, 20, 50),
    item_bias_I: Any = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> RecommendationReport:
    """Rank all items that a user has not seen by the product of the embeddings, and find the held-out one.

    Args:
        user_UD, item_ID: embeddings, float (U, D) and (I, D), of any norm: normalise them where the model does.
        held_out_U: the one item of each user that was held out, int (U,) rows of ``item_ID``.
        seen: for each user the items that training saw with it, rows of ``item_ID`` in any order; they are no
            candidates. A held-out item stays a candidate even if it is among them; the protocol says how often it is.
        ks: cut-offs.
        item_bias_I: added to each item's score, (I,), for models that have one.
        bootstrap, seed: draws of the intervals over users; 0 for none.

    With one relevant item recall@k is 1 where its rank is at most k, and NDCG@k is 1 / log2(1 + rank) there, for the
    best possible ranking has 1 / log2(2) = 1 (Järvelin & Kekäläinen 2002, Cumulated gain-based evaluation of IR
    techniques). All items are ranked, not a sample of them (Krichene & Rendle 2020, On Sampled Metrics for Item
    Recommendation). Ties count against the model: items that score the same as the held-out one are ranked before it,
    so a model that gives all items one score finds nothing.

    Scores are computed in float64 for some users at a time and never held for all.

    Raises:
        ClipkitError: arrays that do not fit each other, NaN, or an item that does not exist.

    Example:
        >>> report = recommendation(np.eye(3), np.eye(3), [0, 1, 2], [[1], [2], []], ks=(1,))
        >>> report.recall[1].value
        1.0
    """
    user_UD, item_ID = finite_rows("user_UD", user_UD, np.float64), finite_rows("item_ID", item_ID, np.float64)
    if user_UD.shape[1] != item_ID.shape[1]:
        raise ClipkitError(
            f"user_UD has {user_UD.shape[1]} dimensions and item_ID {item_ID.shape[1]}: pass embeddings of one space"
        )
    n_users, n_items = len(user_UD), len(item_ID)
    held_U = indices("held_out_U", held_out_U, n_users, n_items, "items")
    seen_U = _seen(seen, n_users, n_items)
    cutoffs = sorted({int(k) for k in ks})
    if not cutoffs or cutoffs[0] < 1:
        raise ClipkitError(f"ks is {tuple(ks)}: give cut-offs of at least 1, such as 10")
    bias_I = np.zeros(n_items)
    if item_bias_I is not None:
        bias_I = as_numpy(item_bias_I).astype(np.float64)
        if bias_I.shape != (n_items,) or not np.isfinite(bias_I).all():
            raise ClipkitError(f"item_bias_I has shape {bias_I.shape}: it needs ({n_items},) finite numbers")
    bootstrap = check_draws(bootstrap)

    rank_U = np.empty(n_users, dtype=np.int64)
    step = max(1, _CELLS // n_items)
    for start in range(0, n_users, step):
        part = slice(start, start + step)
        rank_U[part] = _ranks(user_UD[part], item_ID, bias_I, held_U[part], seen_U[part])
    again_U = np.array([held in items for held, items in zip(held_U, seen_U, strict=True)])
    candidates_U = np.array([n_items - len(items) for items in seen_U]) + again_U

    hits_UK = rank_U[:, None] <= np.array(cutoffs)
    gains_UK = hits_UK / np.log2(1 + rank_U[:, None])
    ones_U = np.ones(n_users)
    recall = bootstrap_shares(hits_UK, ones_U, bootstrap, seed)
    ndcg = bootstrap_shares(gains_UK, ones_U, bootstrap, seed)
    # of a random place among c candidates: its gain is 1 / log2(1 + place), each place with probability 1 / c
    gains = np.concatenate([[0], np.cumsum(1 / np.log2(1 + np.arange(1, min(cutoffs[-1], n_items) + 1)))])
    return RecommendationReport(
        recall=dict(zip(cutoffs, recall, strict=True)),
        ndcg=dict(zip(cutoffs, ndcg, strict=True)),
        chance_recall={k: float((np.minimum(k, candidates_U) / candidates_U).mean()) for k in cutoffs},
        chance_ndcg={k: float((gains[np.minimum(k, candidates_U)] / candidates_U).mean()) for k in cutoffs},
        n_users=n_users,
        n_items=n_items,
        protocol=_protocol(n_users, n_items, float(candidates_U.mean()), int(again_U.sum()), bootstrap, seed),
        rank_U=rank_U,
    )


def _ranks(
    user_uD: np.ndarray, item_ID: np.ndarray, bias_I: np.ndarray, held_u: np.ndarray, seen_u: list[np.ndarray]
) -> np.ndarray:
    """1 + the number of other candidates that score at least as high as the held-out item."""
    score_uI = user_uD @ item_ID.T + bias_I
    each = np.arange(len(held_u))
    own_u = score_uI[each, held_u].copy()
    score_uI[np.repeat(each, [len(items) for items in seen_u]), np.concatenate(seen_u)] = -np.inf
    score_uI[each, held_u] = -np.inf
    # equal scores may differ by the rounding of their sums, which grows with what is summed
    size_u = np.linalg.norm(user_uD, axis=1) * np.linalg.norm(item_ID, axis=1).max() + np.abs(bias_I).max()
    return 1 + np.count_nonzero(score_uI >= (own_u - TIE * size_u)[:, None], axis=1)


def _seen(seen: Sequence[Any], n_users: int, n_items: int) -> list[np.ndarray]:
    """The items of each user, each once."""
    if len(seen) != n_users:
        raise ClipkitError(f"seen has {len(seen)} lists for {n_users} users: give one a user, an empty one for none")
    found = []
    for user, items in enumerate(seen):
        array = as_numpy(items)
        if not array.size:
            found.append(np.zeros(0, dtype=np.int64))
            continue
        found.append(np.unique(indices(f"seen[{user}]", array, array.size, n_items, "items")))
    return found


def _protocol(n_users: int, n_items: int, candidates: float, again: int, bootstrap: int, seed: int) -> str:
    text = (
        f"leave-one-out: one held-out item of {n_users:,} users among {n_items:,} items less those that the user has "
        f"seen, {candidates:,.1f} candidates on average; ties count against the model"
    )
    if again:
        text += f"; {again:,} user{'s' if again > 1 else ''} had seen the held-out item before"
    if bootstrap:
        text += f"; 95 % percentile bootstrap over users, {bootstrap:,} draws, seed {seed}"
    return text
