"""The bootstrap against its own definition and against simulated worlds whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.evaluation import Interval, bootstrap_class_means, bootstrap_shares


def test_equals_the_bootstrap_that_draws_units_one_by_one() -> None:
    rng = np.random.default_rng(0)
    trials = rng.integers(1, 6, 150)
    hits = rng.binomial(trials, 0.3)
    interval = bootstrap_shares(hits[:, None], trials, bootstrap=20_000)[0]
    drawn = rng.integers(0, 150, size=(20_000, 150))
    reference = np.quantile(hits[drawn].sum(1) / trials[drawn].sum(1), [0.025, 0.975])
    assert interval.value == pytest.approx(hits.sum() / trials.sum())
    assert [interval.low, interval.high] == pytest.approx(reference.tolist(), abs=2e-3)


def test_covers_the_truth_in_about_95_of_100_worlds() -> None:
    """Pictures with 1 to 5 captions whose hits depend on the picture: the truth is E[hits] / E[trials]."""
    rng = np.random.default_rng(1)
    covered = naive = 0
    worlds = 400
    for seed in range(worlds):
        trials = rng.integers(1, 6, 200)
        easy = np.where(rng.random(200) < 0.5, 0.9, 0.1)  # whole pictures are easy or hard
        hits = rng.binomial(trials, easy)
        interval = bootstrap_shares(hits[:, None], trials, bootstrap=400, seed=seed)[0]
        covered += interval.low <= 0.5 <= interval.high
        half = 1.96 * (0.25 / trials.sum()) ** 0.5  # as if captions were independent
        naive += abs(interval.value - 0.5) <= half
    assert 0.92 <= covered / worlds <= 0.98
    assert naive / worlds < 0.9


def test_the_seed_decides_and_the_order_does_not() -> None:
    rng = np.random.default_rng(2)
    trials = rng.integers(1, 4, 80)
    hits = np.stack([rng.binomial(trials, 0.2), rng.binomial(trials, 0.7)], axis=1)
    first = bootstrap_shares(hits, trials, seed=5)
    order = rng.permutation(80)
    assert bootstrap_shares(hits[order], trials[order], seed=5) == first
    assert bootstrap_shares(hits, trials, seed=6) != first
    assert all(interval.low < interval.value < interval.high for interval in first)


def test_no_hit_and_only_hits_still_have_a_bound() -> None:
    none, every = bootstrap_shares(np.array([[0, 1]] * 100), np.ones(100))
    assert (none.value, none.low) == (0, 0) and none.high == pytest.approx(0.0362, abs=1e-3)
    assert (every.value, every.high) == (1, 1) and every.low == pytest.approx(1 - 0.0362, abs=1e-3)


def test_many_distinct_units_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = np.arange(1, 301)
    hits = (trials // 3)[:, None]
    whole = bootstrap_shares(hits, trials, bootstrap=200)
    monkeypatch.setattr("clipkit.evaluation.intervals._CELLS", 7 * 300)
    assert bootstrap_shares(hits, trials, bootstrap=200) == whole


def test_class_means_equal_a_bootstrap_inside_each_class() -> None:
    rng = np.random.default_rng(3)
    trials, hits = np.array([3, 40, 100]), np.array([1, 30, 40])
    mean, per_class = bootstrap_class_means(hits, trials, bootstrap=20_000)
    draws = []
    for n, right in zip(trials, hits, strict=True):
        samples = np.arange(n) < right
        draws.append(samples[rng.integers(0, n, size=(20_000, n))].mean(1))
    reference = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    assert mean.value == pytest.approx((hits / trials).mean())
    assert [mean.low, mean.high] == pytest.approx(reference.tolist(), abs=0.01)
    for interval, draw in zip(per_class, draws, strict=True):
        expected = np.quantile(draw, [0.025, 0.975])
        assert [interval.low, interval.high] == pytest.approx(expected.tolist(), abs=0.03)


def test_interval_text_and_json() -> None:
    assert str(Interval(0.421, 0.38, 0.463)) == "42.1 % [38.0, 46.3]"
    assert str(Interval(0.5)) == "50.0 %"
    assert Interval(0.5).to_dict() == {"value": 0.5, "low": None, "high": None}


@pytest.mark.parametrize("bootstrap", [-1, 2.5, True, "many"])
def test_wrong_numbers_of_draws_are_named(bootstrap: object) -> None:
    with pytest.raises(ClipkitError, match="bootstrap is"):
        bootstrap_shares(np.ones((3, 1)), np.ones(3), bootstrap=bootstrap)  # type: ignore[arg-type]
