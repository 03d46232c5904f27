"""Bootstrap intervals over units: a unit is what was drawn from the world (a picture with its captions)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError

LEVEL = 0.95
# patterns × draws held at once: 32 MB of int64
_CELLS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval; `low` and `high` are NaN where no interval was asked for."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def to_dict(self) -> dict[str, float | None]:
        """The three numbers for JSON, which has no NaN: an interval that was not computed is null."""
        known = not math.isnan(self.low)
        return {"value": self.value, "low": self.low if known else None, "high": self.high if known else None}

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{100 * self.value:.1f} %"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def check_draws(bootstrap: int) -> int:
    """The number of draws, at least 0 (0: no intervals)."""
    if isinstance(bootstrap, bool) or not isinstance(bootstrap, (int, np.integer)) or bootstrap < 0:
        raise ClipkitError(f"bootstrap is {bootstrap!r}: pass the number of draws, 0 for no intervals")
    return int(bootstrap)


def bootstrap_shares(hits_UK: np.ndarray, trials_U: np.ndarray, bootstrap: int = 1000, seed: int = 0) -> list[Interval]:
    """Percentile bootstrap of K shares Σhits / Σtrials over the same U units.

    hits_UK: hits of each unit, column by column another share, 0 ≤ hits ≤ trials.
    trials_U: trials of each unit, at least 1.
    Returns K intervals, which do not depend on the order of the units.

    A unit is drawn whole, with all its trials, so the result is a ratio of two sums that vary together
    (Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapters 8 and 13). Units with the same hits
    and trials are exchangeable: drawing how often each *pattern* occurs, from a multinomial, is the same
    bootstrap and costs draws × patterns instead of draws × units.

    Where every trial is a hit (or none is), every draw repeats that and the percentiles say nothing; the
    bound is then the binomial one over units, 1 - 0.025^(1/U) away (Clopper & Pearson 1934).
    """
    bootstrap = check_draws(bootstrap)
    hits_UK = np.asarray(hits_UK, dtype=np.float64)
    trials_U = np.asarray(trials_U, dtype=np.float64)
    values_K = hits_UK.sum(0) / trials_U.sum()
    if not bootstrap:
        return [Interval(float(value)) for value in values_K]

    units = len(trials_U)
    patterns, counts_P = np.unique(np.column_stack([trials_U, hits_UK]), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    step = max(1, _CELLS // len(patterns))
    shares = []
    for start in range(0, bootstrap, step):
        draws = min(step, bootstrap - start)
        sums = rng.multinomial(units, counts_P / units, size=draws) @ patterns
        shares.append(sums[:, 1:] / sums[:, :1])
    tail = (1 - LEVEL) / 2
    low_K, high_K = np.quantile(np.concatenate(shares), [tail, 1 - tail], axis=0)
    slack = 1 - tail ** (1 / units)
    low_K = np.where(values_K == 1, 1 - slack, low_K)
    high_K = np.where(values_K == 0, slack, high_K)
    return [Interval(*map(float, bounds)) for bounds in zip(values_K, low_K, high_K, strict=True)]


def bootstrap_class_means(
    hits_C: np.ndarray, trials_C: np.ndarray, bootstrap: int = 1000, seed: int = 0
) -> tuple[Interval, list[Interval]]:
    """The mean over classes of hits / trials, and each class's own share, with intervals.

    hits_C, trials_C: whole numbers per class; every class has at least one trial.
    The samples of a class are drawn within the class, as many as it has: a class of three samples must not
    vanish from a third of the draws. Drawing n samples of which a share p are hits gives Binomial(n, p)
    hits, so no sample is touched.
    """
    bootstrap = check_draws(bootstrap)
    trials_C = np.asarray(trials_C, dtype=np.int64)
    shares_C = np.asarray(hits_C, dtype=np.float64) / trials_C
    mean = float(shares_C.mean())
    if not bootstrap:
        return Interval(mean), [Interval(float(share)) for share in shares_C]
    draws_BC = np.random.default_rng(seed).binomial(trials_C, shares_C, size=(bootstrap, len(trials_C)))
    draws_BC = draws_BC / trials_C
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws_BC.mean(1), [tail, 1 - tail])
    low_C, high_C = np.quantile(draws_BC, [tail, 1 - tail], axis=0)
    slack_C = 1 - tail ** (1 / trials_C)  # as in bootstrap_shares
    low_C = np.where(shares_C == 1, 1 - slack_C, low_C)
    high_C = np.where(shares_C == 0, slack_C, high_C)
    if mean in (0.0, 1.0):
        slack = 1 - tail ** (1 / trials_C.sum())
        low, high = (1 - slack, 1.0) if mean else (0.0, slack)
    per_class = [Interval(*map(float, bounds)) for bounds in zip(shares_C, low_C, high_C, strict=True)]
    return Interval(mean, float(low), float(high)), per_class


def seed_interval(values: Any, lowest: float = -math.inf, highest: float = math.inf) -> Interval:
    """Mean over repetitions with other seeds, and its 95 % interval by Student's t (Student 1908): mean ± t s / √n with
    n - 1 degrees of freedom, cut at the values that the figure cannot pass. One repetition has no interval."""
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean)
    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return Interval(mean, max(lowest, mean - half), min(highest, mean + half))
