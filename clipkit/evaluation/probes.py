"""What frozen features know: a linear probe and the nearest neighbours."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError, check_count
from clipkit.evaluation.arrays import finite_rows, label_codes
from clipkit.evaluation.intervals import Interval, bootstrap_class_means, bootstrap_shares, check_draws
from clipkit.evaluation.ranks import TIE
from clipkit.evaluation.subsets import hold_out

# Penalties of the weights' squares, per sample, strongest first: half a decade apart finds no more than noise.
L2 = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
_CELLS = 4_000_000  # cosines held at once


@dataclass(frozen=True)
class ProbeReport:
    """Accuracy of a probe on test samples with 95 % intervals, beside chance.

    Attributes:
        kind: ``linear``, ``knn`` or ``knn_majority``.
        top1: share of the test samples that are right; mean_per_class: the mean of the classes' shares.
        chance: 1 / classes; majority: accuracy of always saying the test set's largest class.
        setting: what was chosen: ``l2`` of a linear probe, ``k`` of the neighbours.
        predicted_N: the predicted class of each test sample, an index into class_names; int64.
    """

    kind: str
    top1: Interval
    mean_per_class: Interval
    chance: float
    majority: float
    setting: float
    class_names: tuple[str, ...]
    n_train: int
    n_test: int
    protocol: str
    predicted_N: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON."""
        return {
            "kind": self.kind,
            "top1": self.top1.to_dict(),
            "mean_per_class": self.mean_per_class.to_dict(),
            "chance": self.chance,
            "majority": self.majority,
            "setting": self.setting,
            "class_names": list(self.class_names),
            "n_train": self.n_train,
            "n_test": self.n_test,
            "protocol": self.protocol,
        }

    def __str__(self) -> str:
        return (
            f"{self.kind} top-1 {self.top1}, mean per class {self.mean_per_class}; chance {100 * self.chance:.1f} %; "
            f"{self.n_train:,} training and {self.n_test:,} test samples, {len(self.class_names):,} classes"
        )


def linear_probe(
    train_ND: Any,
    train_labels: Any,
    test_MD: Any,
    test_labels: Any,
    l2: tuple[float, ...] = L2,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ProbeReport:
    """Multinomial logistic regression (scikit-learn, L-BFGS) on frozen features (Alain & Bengio 2017, Understanding
    intermediate layers using linear classifier probes).

    Args:
        train_ND, test_MD: features, (N, D) and (M, D) float; as the encoder gives them, not normalised.
        train_labels, test_labels: (N,) and (M,), whole numbers or texts.
        l2: candidates λ in mean cross-entropy + λ/2 ‖W‖², so that one λ means the same for any N. The one with the best
            accuracy on a fifth of the training samples, held out by class, is fitted again on all of them; of equals,
            the strongest. The test samples choose nothing. A single candidate is taken as it is.
        bootstrap, seed: of the intervals over test samples (0 draws: none); seed also chooses the held-out fifth.

    Features are standardised with the training samples' mean and deviation: the penalty treats all weights alike, so a
    feature on a small scale would be penalised more than one on a large scale, and the encoder's scales mean nothing.
    A feature that is constant in training is only centred.

    Raises:
        ClipkitError: shapes that do not fit, NaN, or a test label that training does not have.
    """
    train_ND, test_MD = finite_rows("train_ND", train_ND), finite_rows("test_MD", test_MD)
    _same_width(train_ND, test_MD)
    train_N, test_M, names = label_codes(
        "train_labels", train_labels, len(train_ND), "test_labels", test_labels, len(test_MD)
    )
    if not len(l2) or not all(np.isfinite(value) and value > 0 for value in l2):
        raise ClipkitError(f"l2 is {l2}: give penalties above 0, such as (1e-2, 1e-4)")
    candidates = sorted(l2, reverse=True)
    chosen, shares = candidates[0], None
    if len(candidates) > 1:
        fit, held = hold_out(train_N, 0.2, seed)
        inside, outside = _standardised(train_ND[fit], train_ND[held])
        shares = [
            float((_fit(inside, train_N[fit], value).predict(outside) == train_N[held]).mean()) if len(held) else 0.0
            for value in candidates
        ]
        # candidates without a sample to choose by: the middle
        chosen = candidates[int(np.argmax(shares))] if len(held) else candidates[len(candidates) // 2]
    inside, outside = _standardised(train_ND, test_MD)
    model = _fit(inside, train_N, chosen)
    protocol = (
        "logistic regression (L-BFGS) on features standardised by the training samples; l2 "
        f"{chosen:g}, {'given' if shares is None else f'the best of {len(candidates)} on a fifth of training'}"
    )
    if int(model.n_iter_.max()) >= model.max_iter:
        protocol += f"; stopped after {model.max_iter:,} iterations"
    return _report("linear", model.predict(outside), test_M, names, chosen, len(train_N), protocol, bootstrap, seed)


def knn(
    train_ND: Any,
    train_labels: Any,
    test_MD: Any,
    test_labels: Any,
    k: int = 20,
    temperature: float | None = 0.07,
    bootstrap: int = 1000,
    seed: int = 0,
) -> ProbeReport:
    """The k nearest training samples by cosine, whose votes weigh exp(cosine / temperature) (Wu et al. 2018,
    Unsupervised Feature Learning via Non-Parametric Instance Discrimination; k = 20 and 0.07 as in DINO, Caron et al.
    2021), or one each with ``temperature=None``.

    Args:
        train_ND, test_MD: features, (N, D) and (M, D) float, normalised here; no row of zeros.
        train_labels, test_labels: (N,) and (M,), whole numbers or texts.
        k: neighbours, N where there are fewer.
        bootstrap, seed: of the intervals over test samples; 0 draws for none.

    Nothing depends on the order of the training samples: neighbours that tie for the last places share them, and a
    test sample is right only if its own class has more votes than every other. Equal numbers of plain votes are
    decided by the sum of the cosines.

    Raises:
        ClipkitError: shapes that do not fit, NaN, a row of zeros, k below 1, a temperature that is not above 0, or a
            test label that training does not have.
    """
    train_ND, test_MD = _unit("train_ND", train_ND), _unit("test_MD", test_MD)
    _same_width(train_ND, test_MD)
    train_N, test_M, names = label_codes(
        "train_labels", train_labels, len(train_ND), "test_labels", test_labels, len(test_MD)
    )
    check_count("k", k)
    if temperature is not None and not 0 < temperature < np.inf:
        raise ClipkitError(f"temperature is {temperature!r}: it must be above 0, or None for plain votes")
    k = min(int(k), len(train_ND))
    predicted_M = np.empty(len(test_MD), dtype=np.int64)
    rows = max(1, _CELLS // len(train_ND))
    for start in range(0, len(test_MD), rows):
        part = slice(start, start + rows)
        predicted_M[part] = _vote(train_ND, train_N, test_MD[part], test_M[part], len(names), k, temperature)
    votes = "one vote each" if temperature is None else f"votes exp(cosine / {temperature:g})"
    protocol = f"{k} nearest training samples by cosine, {votes}; ties count against"
    kind = "knn" if temperature is not None else "knn_majority"
    return _report(kind, predicted_M, test_M, names, k, len(train_N), protocol, bootstrap, seed)


def _vote(
    train_ND: np.ndarray,
    train_N: np.ndarray,
    test_mD: np.ndarray,
    test_m: np.ndarray,
    n_classes: int,
    k: int,
    temperature: float | None,
) -> np.ndarray:
    """The predicted class of each test sample, another than its own where its own does not win alone."""
    q, n, cosine = _neighbours(train_ND, test_mD, k)
    # q is sorted, so a sample's neighbours lie together; its k-th largest cosine is the threshold
    order = np.lexsort((-cosine, q))
    q, n, cosine = q[order], n[order], cosine[order]
    first_m = np.searchsorted(q, np.arange(len(test_mD)))
    threshold = cosine[first_m + k - 1][q]
    sure, tied = cosine > threshold + TIE, np.abs(cosine - threshold) <= TIE
    places_m = k - np.bincount(q, sure, len(test_mD))
    share = np.where(sure, 1.0, np.where(tied, (places_m / np.bincount(q, tied, len(test_mD)))[q], 0.0))

    cell = q * n_classes + train_N[n]
    shape = (len(test_mD), n_classes)
    near = np.exp((cosine - cosine[first_m][q]) / temperature) if temperature is not None else 1.0
    votes_mC = np.bincount(cell, share * near, np.prod(shape)).reshape(shape)
    if temperature is None:
        sums_mC = np.bincount(cell, share * cosine, np.prod(shape)).reshape(shape)
        ahead = votes_mC >= votes_mC.max(1, keepdims=True) - 1e-9
        votes_mC = np.where(ahead, sums_mC + 2 * k, 0)  # a sum of k cosines is above -2k
    each = np.arange(len(test_mD))
    own_m = votes_mC[each, test_m].copy()
    votes_mC[each, test_m] = -np.inf
    best_m = votes_mC.max(1)
    return np.where(own_m > best_m + 1e-9 * np.abs(best_m), test_m, votes_mC.argmax(1))


def _neighbours(train_ND: np.ndarray, test_mD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(test row, training row, cosine in float64) of every cell that may be among the k nearest, in order of the rows.

    Found in float32, whose last bits depend on where a cell lies, so all cells within the rounding bound of the k-th
    are candidates, and computed again in float64: equal rows must tie.
    """
    cosine_mN = test_mD.astype(np.float32) @ train_ND.astype(np.float32).T
    last_m1 = np.partition(cosine_mN, len(train_ND) - k, axis=1)[:, len(train_ND) - k, None]
    margin = 2 * (train_ND.shape[1] + 8) * 2.0**-24  # of two float32 dot products of unit vectors
    q, n = np.nonzero(cosine_mN >= last_m1 - np.float32(margin))
    exact = np.empty(len(q))
    for start in range(0, len(q), 65_536):
        part = slice(start, start + 65_536)
        exact[part] = np.einsum("pd,pd->p", test_mD[q[part]], train_ND[n[part]])
    return q, n, exact


def _unit(name: str, values: Any) -> np.ndarray:
    rows = finite_rows(name, values, np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise ClipkitError(f"{name}[{np.flatnonzero(norms == 0)[0]}] is all zeros: it has no direction to compare")
    return rows / norms


def _same_width(train_ND: np.ndarray, test_MD: np.ndarray) -> None:
    if train_ND.shape[1] != test_MD.shape[1]:
        raise ClipkitError(
            f"train_ND has {train_ND.shape[1]} dimensions and test_MD {test_MD.shape[1]}: encode both with one model"
        )


def _standardised(train_ND: np.ndarray, other_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the mean and deviation of the first."""
    mean_D, std_D = train_ND.mean(0, dtype=np.float64), train_ND.std(0, dtype=np.float64)
    constant = std_D <= 1e-6 * np.abs(mean_D) + 1e-12  # rounding of float32
    scale_D = np.where(constant, 1.0, std_D)
    train, other = (((rows - mean_D) / scale_D).astype(np.float32) for rows in (train_ND, other_MD))
    return train, other


def _fit(features_ND: np.ndarray, label_N: np.ndarray, l2: float) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the report says it
        return LogisticRegression(C=1 / (l2 * len(label_N)), max_iter=1000).fit(features_ND, label_N)


def _report(
    kind: str,
    predicted_M: np.ndarray,
    test_M: np.ndarray,
    names: list[str],
    setting: float,
    n_train: int,
    protocol: str,
    bootstrap: int,
    seed: int,
) -> ProbeReport:
    bootstrap = check_draws(bootstrap)
    right = predicted_M == test_M
    counts_C = np.bincount(test_M, minlength=len(names))
    seen = np.flatnonzero(counts_C)
    hits_C = np.bincount(test_M[right], minlength=len(names))
    mean, _ = bootstrap_class_means(hits_C[seen], counts_C[seen], bootstrap, seed)
    if bootstrap:
        protocol += f"; 95 % percentile bootstrap over test samples, {bootstrap:,} draws, seed {seed}"
    return ProbeReport(
        kind=kind,
        top1=bootstrap_shares(right[:, None], np.ones(len(test_M)), bootstrap, seed)[0],
        mean_per_class=mean,
        chance=1 / len(names),
        majority=float(counts_C.max() / len(test_M)),
        setting=setting,
        class_names=tuple(names),
        n_train=n_train,
        n_test=len(test_M),
        protocol=protocol,
        predicted_N=predicted_M.astype(np.int64),
    )
