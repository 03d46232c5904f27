"""Parts of labelled samples, drawn by class and by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipkit.errors import ClipkitError


def hold_out(label_N: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held out): indices of the samples, ascending, with ``share`` of each class held out.

    A class keeps at least one sample, so one of a single sample is not held out.
    """
    kept, held = [], []
    for rows in _shuffled_classes(label_N, seed):
        n = min(_rounded(share * len(rows)), len(rows) - 1)
        held.append(rows[:n])
        kept.append(rows[n:])
    return np.sort(np.concatenate(kept)), np.sort(np.concatenate(held))


def nested_subsets(label_N: np.ndarray, fractions: Sequence[float], seed: int) -> dict[float, np.ndarray]:
    """For each fraction, the indices of that share of every class, ascending; at least one of each class.

    label_N: classes, int (N,). Fractions are from above 0 to 1. A smaller subset lies inside every larger one: what
    more labels add is then not the luck of another draw.
    """
    for fraction in fractions:
        if isinstance(fraction, bool) or not 0 < fraction <= 1:
            raise ClipkitError(f"the fraction {fraction} is no share of the labels: give numbers such as 0.01 0.1 1")
    if not len(fractions):
        raise ClipkitError("no fractions: give at least one, such as 0.01")
    classes = _shuffled_classes(label_N, seed)
    return {
        float(fraction): np.sort(np.concatenate([rows[: max(1, _rounded(fraction * len(rows)))] for rows in classes]))
        for fraction in sorted(set(fractions))
    }


def _shuffled_classes(label_N: np.ndarray, seed: int) -> list[np.ndarray]:
    """The samples of each class, shuffled by ``seed``."""
    rng = np.random.default_rng(seed)
    return [rng.permutation(np.flatnonzero(label_N == c)) for c in np.unique(label_N)]


def _rounded(count: float) -> int:
    """To the nearest whole number, halves up; a product such as 0.07 x 100 is a little off a whole number."""
    return int(np.floor(count + 0.5 + 1e-9))
