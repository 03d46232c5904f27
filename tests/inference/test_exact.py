"""The exact search against float64, where float32 scores alone would decide wrongly too."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.inference import exact
from clipkit.inference.exact import ExactSearch


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def best(rows: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    scores = (queries.astype(np.float64) @ rows.astype(np.float64).T).astype(np.float32)
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.mark.parametrize("many", [1, 3, 50])
def test_bursts_of_near_duplicates_are_ordered_rightly(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three thousand pictures whose scores differ by less than a float32 sum is off by."""
    monkeypatch.setattr(exact, "_BLOCK", 1500)
    draw = np.random.default_rng(0)
    centre = draw.normal(size=512)
    rows = unit(np.concatenate([centre + 1e-6 * draw.normal(size=(3000, 512)), draw.normal(size=(3000, 512))]))
    rows = rows[draw.permutation(6000)]
    queries = unit(centre + 0.3 * draw.normal(size=(many, 512)))
    for k in (1, 40, 2999, 6000):
        assert ExactSearch(rows).search(queries, k)[1].tolist() == best(rows, queries, k).tolist()
    plain = np.argsort(-(rows @ queries[0]), kind="stable")[:40]
    assert plain.tolist() != best(rows, queries[:1], 40)[0].tolist(), "float32 alone gets it wrong here"


def test_copies_of_a_picture_come_in_the_order_of_their_rows() -> None:
    draw = np.random.default_rng(1)
    rows = unit(draw.normal(size=(9000, 512)))
    copies = np.sort(draw.choice(9000, 700, replace=False))
    rows[copies] = rows[copies[0]]
    for many in (1, 7):
        found = ExactSearch(rows).search(np.repeat(rows[copies[:1]], many, axis=0), 650)[1]
        assert (found == copies[:650]).all()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.9, 1.0])
def test_only_allowed_rows_are_found(share: float) -> None:
    draw = np.random.default_rng(2)
    rows, queries = unit(draw.normal(size=(5000, 32))), unit(draw.normal(size=(4, 32)))
    allowed = draw.random(5000) < share
    places = np.flatnonzero(allowed)
    scores, found = ExactSearch(rows).search(queries, 20, allowed)
    assert found.shape == scores.shape == (4, min(20, len(places)))
    assert found.tolist() == places[best(rows[places], queries, 20)].tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("many", [1, 3])
def test_what_is_not_finite_is_never_found(bad: float, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "_BLOCK", 1500)
    draw = np.random.default_rng(4)
    rows, queries = unit(draw.normal(size=(4000, 16))), unit(draw.normal(size=(many, 16)))
    broken = np.sort(draw.choice(4000, 40, replace=False))
    good = np.setdiff1d(np.arange(4000), broken)
    expected = good[best(rows[good], queries, 4000)]
    rows[broken, draw.integers(0, 16, 40)] = bad
    for k in (1, 10, 3960, 3961, 4000):
        scores, found = ExactSearch(rows).search(queries, k)
        assert found.tolist() == expected[:, :k].tolist() and np.isfinite(scores).all()
    allowed = np.isin(np.arange(4000), [*broken[:5], good[7]])
    assert ExactSearch(rows).search(queries, 3, allowed)[1].tolist() == [[good[7]]] * many


def test_memory_is_that_of_a_block() -> None:
    """A hundred queries over 40,000 rows: the whole table of scores would be 16 MB."""
    import tracemalloc

    draw = np.random.default_rng(3)
    rows, queries = unit(draw.normal(size=(40_000, 16))), unit(draw.normal(size=(100, 16)))
    ExactSearch(rows[:100]).search(queries, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact, "_CELLS", 200_000)
        tracemalloc.start()
        ExactSearch(rows).search(queries, 5)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 8_000_000
