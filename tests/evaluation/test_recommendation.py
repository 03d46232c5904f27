"""Recall and NDCG with leave-one-out against a dense reference and scikit-learn, by hand, and with ties."""

from __future__ import annotations

import importlib
import json
import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from clipkit.errors import ClipkitError
from clipkit.evaluation import leave_one_out, recommendation

MODULE = importlib.import_module("clipkit.evaluation.recommendation")  # the function hides its module
Data = tuple[np.ndarray, np.ndarray, np.ndarray, list[np.ndarray]]


def data(users: int = 60, items: int = 40, seed: int = 0) -> Data:
    rng = np.random.default_rng(seed)
    held = rng.integers(0, items, users)
    seen = [np.setdiff1d(rng.choice(items, rng.integers(0, 9), replace=False), [h]) for h in held]
    item = rng.normal(size=(items, 8))
    return item[held] + 2 * rng.normal(size=(users, 8)), item, held, seen


def test_equals_a_dense_reference() -> None:
    user, item, held, seen = data()
    report = recommendation(user, item, held, seen, ks=(1, 5, 10))
    ranks, gains = [], []
    for u in range(60):
        candidates = np.setdiff1d(np.arange(40), seen[u])
        scores = item[candidates] @ user[u]
        order = candidates[np.argsort(-scores)]
        ranks.append(1 + order.tolist().index(held[u]))
        gains.append([ndcg_score([candidates == held[u]], [scores], k=k) for k in (1, 5, 10)])
    assert report.rank_U.tolist() == ranks
    for column, k in enumerate((1, 5, 10)):
        assert report.recall[k].value == pytest.approx(np.mean(np.array(ranks) <= k))
        assert report.ndcg[k].value == pytest.approx(np.mean(gains, axis=0)[column])
        assert report.recall[k].low < report.recall[k].value < report.recall[k].high
        assert report.ndcg[k].low < report.ndcg[k].value < report.ndcg[k].high
    assert report.recall[10].value > 2 * report.chance_recall[10], "it knows something"
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["ndcg"]["5"]["value"] == report.ndcg[5].value
    assert report.metrics()["recall@10"] == report.recall[10].value and "60 users, 40 items" in str(report)


def test_by_hand() -> None:
    item = np.diag([4.0, 3, 2, 1])
    user = np.ones((3, 4))
    # all users rank the items 0 1 2 3; without the seen ones the held-out items are at 3, 2 and 1
    report = recommendation(user, item, [2, 2, 1], [[3], [0], [0]], ks=(1, 2, 9), bootstrap=0)
    assert report.rank_U.tolist() == [3, 2, 1]
    assert report.recall[1].value == pytest.approx(1 / 3) and report.recall[2].value == pytest.approx(2 / 3)
    assert report.recall[9].value == 1
    assert report.ndcg[2].value == pytest.approx((1 / math.log2(3) + 1) / 3)
    assert report.ndcg[9].value == pytest.approx((1 / math.log2(4) + 1 / math.log2(3) + 1) / 3)
    # three candidates each: any of the three places
    assert report.chance_recall == pytest.approx({1: 1 / 3, 2: 2 / 3, 9: 1})
    assert report.chance_ndcg[2] == pytest.approx((1 + 1 / math.log2(3)) / 3)
    assert report.chance_ndcg[9] == pytest.approx((1 + 1 / math.log2(3) + 0.5) / 3)


def test_chance_is_what_random_scores_get() -> None:
    _, _, held, seen = data(2000, 40)
    rng = np.random.default_rng(0)
    report = recommendation(rng.normal(size=(2000, 30)), rng.normal(size=(40, 30)), held, seen, ks=(5, 20))
    for k in (5, 20):
        assert report.recall[k].value == pytest.approx(report.chance_recall[k], abs=0.03)
        assert report.ndcg[k].value == pytest.approx(report.chance_ndcg[k], abs=0.02)


def test_order_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    user, item, held, seen = data()
    plain = recommendation(user, item, held, seen)
    order, places = np.random.default_rng(1).permutation(60), np.random.default_rng(2).permutation(40)
    back = np.argsort(places)
    moved = recommendation(
        user[order], item[places], back[held[order]], [back[np.random.permutation(seen[u])] for u in order]
    )
    assert moved.recall == plain.recall and moved.metrics() == pytest.approx(plain.metrics())
    assert moved.ndcg[10].low == pytest.approx(plain.ndcg[10].low)
    assert (moved.rank_U == plain.rank_U[order]).all()
    monkeypatch.setattr(MODULE, "_CELLS", 7 * 40)
    assert recommendation(user, item, held, seen).to_dict() == plain.to_dict()


def test_the_table_of_all_scores_is_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = np.count_nonzero

    def spy(cells: np.ndarray, **options: int) -> np.ndarray:
        sizes.append(cells.size)
        return real(cells, **options)

    monkeypatch.setattr(MODULE, "_CELLS", 300)
    monkeypatch.setattr(MODULE.np, "count_nonzero", spy)
    recommendation(*data())
    assert max(sizes) <= 300 and len(sizes) == 9


def test_ties_count_against_the_model() -> None:
    assert recommendation(np.ones((2, 3)), np.ones((10, 3)), [0, 9], [[1], []]).rank_U.tolist() == [9, 10]
    # equal items whose sums may round differently: 0.1 + 0.2 + 0.3 in another order
    user = np.array([[0.1, 0.2, 0.3, 0.7]])
    item = np.array([[1, 1, 1, 0], [0, 0, 0, 6 / 7], [0, 0, 0, 0.1]])
    for held in (0, 1):
        assert recommendation(user, item, [held], [[]]).rank_U.tolist() == [2]
    assert recommendation(1e6 * user, 1e6 * item, [0], [[]]).rank_U.tolist() == [2], "at any scale"


def test_an_item_that_was_seen_before_stays_a_candidate_and_is_told() -> None:
    item = np.diag([3.0, 2, 1])
    report = recommendation(np.ones((2, 3)), item, [1, 0], [[0, 1], [1]], ks=(1,))
    assert report.rank_U.tolist() == [1, 1] and "1 user had seen" in report.protocol
    assert report.chance_recall[1] == pytest.approx(1 / 2)
    twice = recommendation(np.ones((1, 3)), item, [1], [[0, 0, 2]], ks=(1,))
    assert "had seen" not in twice.protocol and twice.chance_recall[1] == 1, "seen twice, left out once"


def test_biases_are_added() -> None:
    item = np.zeros((3, 2))
    ranks = [recommendation(np.ones((1, 2)), item, [i], [[]], item_bias_I=[5, 7, 6]).rank_U[0] for i in range(3)]
    assert ranks == [3, 1, 2], "popularity alone"
    # norms count: these are products, not cosines
    assert recommendation(np.ones((1, 2)), np.array([[1, 1], [5, 0]]), [1], [[]]).rank_U.tolist() == [1]


@pytest.mark.parametrize(
    "change, named",
    [
        ({0: np.ones((60, 7))}, "7 dimensions and item_ID 8"),
        ({1: np.full((40, 8), np.inf)}, r"item_ID\[0\] holds NaN or infinity"),
        ({2: np.full(60, 40)}, r"held_out_U\[0\] is 40, but there are 40 items"),
        ({2: np.zeros(59, int)}, "held_out_U has shape"),
        ({3: [[]] * 59}, "seen has 59 lists for 60 users"),
        ({3: [[]] * 59 + [[0, -1]]}, r"seen\[59\]\[1\] is -1"),
        ({3: [[0.5]] * 60}, "whole numbers"),
    ],
)
def test_mistakes_are_named(change: dict, named: str) -> None:
    with pytest.raises(ClipkitError, match=named):
        recommendation(*[change.get(i, part) for i, part in enumerate(data())])  # type: ignore[arg-type]


def test_mistakes_in_settings() -> None:
    for ks in ((), (0, 5)):
        with pytest.raises(ClipkitError, match="ks is"):
            recommendation(*data(), ks=ks)
    with pytest.raises(ClipkitError, match="item_bias_I"):
        recommendation(*data(), item_bias_I=np.zeros(39))


# The split


def test_the_last_item_of_each_user_is_held_out() -> None:
    users = ["b", "a", "b", "a", "b", "c"]
    items = [10, 11, 12, 13, 14, 15]
    split = leave_one_out(users, items)
    assert split.users.tolist() == ["a", "b"] and split.held_out.tolist() == [13, 14]
    assert [s.tolist() for s in split.seen] == [[11], [10, 12]]
    assert split.train_R.tolist() == [True, True, True, False, False, True], "c has one item, and keeps it"
    timed = leave_one_out(users, items, [9, 2, 3, 1, 9, 0])
    assert timed.held_out.tolist() == [11, 14], "by time, and of equal times the later row"
    assert leave_one_out(users, items, [9, 2, 3, 1, 8.5, 0]).held_out.tolist() == [11, 10]


def test_training_never_sees_the_answer() -> None:
    split = leave_one_out([1, 1, 1, 1, 2, 2], [7, 8, 8, 7, 9, 9])
    assert split.train_R.tolist() == [False, True, True, False, True, True], "the earlier 7 is held out too"
    assert split.users.tolist() == [1] and split.held_out.tolist() == [7] and split.seen[0].tolist() == [8]


def test_the_split_of_many_interactions() -> None:
    rng = np.random.default_rng(0)
    users, items, times = rng.integers(0, 50, 900), rng.integers(0, 30, 900), rng.permutation(900)
    split = leave_one_out(users, items, times)
    for user, held, seen in zip(split.users, split.held_out, split.seen, strict=True):
        mine = users == user
        assert held == items[mine][times[mine].argmax()]
        assert seen.tolist() == sorted(set(items[mine].tolist()) - {held})
        assert set(items[mine & split.train_R]) == set(seen)
    order = rng.permutation(900)
    again = leave_one_out(users[order], items[order], times[order])
    assert (again.held_out == split.held_out).all() and (again.train_R == split.train_R[order]).all()


def test_mistakes_in_interactions() -> None:
    with pytest.raises(ClipkitError, match="one of each"):
        leave_one_out([1, 2], [1])
    with pytest.raises(ClipkitError, match=r"times_R\[1\] is nan"):
        leave_one_out([1, 2], [1, 2], [0.0, np.nan])
    with pytest.raises(ClipkitError, match=r"times_R\[0\] is NaT"):
        leave_one_out([1, 2], [1, 2], np.array(["NaT", "2024-01-01"], dtype="datetime64[D]"))
    with pytest.raises(ClipkitError, match=r"times_R\[1\] is None"):
        leave_one_out([1, 2], [1, 2], [1, None])
    with pytest.raises(ClipkitError, match=r"users_R\[2\] is None"):
        leave_one_out(["a", "b", None], [1, 2, 3])
    with pytest.raises(ClipkitError, match=r"items_R\[0\] is nan"):
        leave_one_out([1, 2], [np.nan, 2.0])
