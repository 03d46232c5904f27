"""Probabilities that mean what they say: a temperature, and a threshold for "none of these"."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from clipkit.errors import ClipkitError
from clipkit.pairs.captions import parse_json, whole_characters

if TYPE_CHECKING:
    from clipkit.inference.aligner import Aligner

Logits = NDArray[np.float64]
Probabilities = NDArray[np.float32]
BINS = 15
_LIMITS = np.log(0.01), np.log(100.0)
_KNOWN_LOST = 0.05  # share of the known pictures that "none of these" may take where no other pictures are given


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and what it did.

    Attributes:
        temperature: logits are divided by it.
        none_below: a picture whose best probability is lower is none of the classes.
        n: labelled pictures of the classes.
        n_none: pictures that are none of them.
        ece_before, ece_after: expected calibration error (Guo et al. 2017; 15 bins of equal width over the best
            class's probability), without and with the temperature. With it, every picture's temperature was fitted on
            the other folds.
        nll_before, nll_after: mean negative log-likelihood, likewise.
        accuracy: share of the classes' pictures whose best class is right; no temperature changes it.
        known_kept, none_found: shares of the classes' pictures that stay, and of the others that are found, with
            ``none_below``; ``none_found`` is None without such pictures.
    """

    temperature: float
    none_below: float
    n: int
    n_none: int
    ece_before: float
    ece_after: float
    nll_before: float
    nll_after: float
    accuracy: float
    known_kept: float
    none_found: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class SavedCalibration:
    """What ``clipkit calibrate`` has written.

    Attributes:
        model, fingerprint: of the model that it was made for.
        labels, templates: of the classifier that was calibrated.
        temperature, none_below: as in ``Calibration``.
    """

    model: str
    fingerprint: str
    labels: list[str]
    templates: list[str]
    temperature: float
    none_below: float


def read_calibration(data: str | bytes, name: str, model: Aligner) -> SavedCalibration:
    """The calibration in ``data``, JSON as ``clipkit calibrate`` writes it.

    Args:
        name: the file, for messages.
        model: that is to be used with it.

    Raises:
        ClipkitError: something else, or the calibration of another model.
    """
    from clipkit.inference.index_files import model_fingerprint

    try:
        read = parse_json(data)
        found = SavedCalibration(
            model=str(read.get("model")),
            fingerprint=str(read["fingerprint"]),
            labels=[whole_characters(str(label)) for label in read["labels"]],
            templates=[whole_characters(str(template)) for template in read["templates"]],
            temperature=float(read["temperature"]),
            none_below=float(read["none_below"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise ClipkitError(f"{name}: no calibration; make one with clipkit calibrate") from None
    if not (found.temperature > 0 and np.isfinite([found.temperature, found.none_below]).all()):
        raise ClipkitError(f"{name}: damaged (temperature {found.temperature}); make it again with clipkit calibrate")
    if model_fingerprint(model) != found.fingerprint:
        raise ClipkitError(f"{name} was made for {found.model}, not for {model.name} as it is; calibrate again")
    return found


def calibrate(logits_NC: Logits, targets_N: NDArray[np.int64], kind: str, folds: int = 5) -> Calibration:
    """Fit a temperature and a threshold on labelled logits.

    The temperature minimises the negative log-likelihood of the classes' pictures (Guo et al. 2017, "On calibration of
    modern neural networks"), that of a softmax, or for ``sigmoid`` models of a yes or no for every class, and of one
    thing more: that log T is drawn from a normal distribution of mean 0 and variance 1. Where every picture is named
    right the likelihood alone has no minimum: it would call any number of them, however small, a proof of certainty.
    The prior weighs as much as a picture or so, and beside many pictures, some named wrong, it counts for nothing.

    The threshold is the one with which the classes' pictures that stay and the others that are found are the
    largest share, both counting alike; without others, it lets 95 % of the classes' pictures stay.

    Args:
        logits_NC: (N, C).
        targets_N: (N,) class of each picture; -1 for none of them.
        kind: ``softmax`` or ``sigmoid``.
        folds: for the figures "after".

    Raises:
        ClipkitError: fewer pictures of the classes than folds.
    """
    known = targets_N >= 0
    logits, targets = logits_NC[known], targets_N[known]
    if len(logits) < folds:
        raise ClipkitError(f"{len(logits)} labelled pictures: at least {folds} are needed to calibrate on")
    temperature = _temperature(logits, targets, kind)
    part = np.random.default_rng(0).permutation(len(logits)) % folds
    apart = np.array([_temperature(logits[part != f], targets[part != f], kind) for f in range(folds)])[part]
    right = logits.argmax(axis=1) == targets
    best = probabilities(logits_NC / temperature, kind).max(axis=1)  # float32, as they are compared later
    none_below = _threshold(best[known], best[~known])
    return Calibration(
        temperature=float(temperature),
        none_below=none_below,
        n=len(logits),
        n_none=int((~known).sum()),
        ece_before=expected_calibration_error(probabilities(logits, kind).max(axis=1), right),
        ece_after=expected_calibration_error(probabilities(logits / apart[:, None], kind).max(axis=1), right),
        nll_before=float(_losses(logits, targets, kind).mean()),
        nll_after=float(_losses(logits / apart[:, None], targets, kind).mean()),
        accuracy=float(right.mean()),
        known_kept=float((best[known] >= none_below).mean()),
        none_found=float((best[~known] < none_below).mean()) if (~known).any() else None,
    )


def probabilities(logits_NC: Logits, kind: str) -> Probabilities:
    """float32 (N, C): a softmax over the classes, or for ``sigmoid`` a probability of its own for each."""
    found = expit(logits_NC) if kind == "sigmoid" else softmax(logits_NC, axis=1)
    return np.asarray(found, dtype=np.float32)


def expected_calibration_error(confidence_N: NDArray[np.floating], right_N: NDArray[np.bool_]) -> float:
    """How far confidence and accuracy are apart, on average over pictures, in bins of confidence."""
    place = np.minimum((confidence_N * BINS).astype(np.int64), BINS - 1)
    confidence, right, n = (np.bincount(place, weights=w, minlength=BINS) for w in (confidence_N, right_N, None))
    assert n is not None
    return float(np.abs(confidence - right).sum() / n.sum())


def _losses(logits: Logits, targets: NDArray[np.int64], kind: str) -> NDArray[np.float64]:
    rows = np.arange(len(logits))
    if kind == "sigmoid":
        signs = np.full(logits.shape, -1.0)
        signs[rows, targets] = 1.0
        return -log_expit(signs * logits).sum(axis=1)
    return -log_softmax(logits, axis=1)[rows, targets]


def _temperature(logits: Logits, targets: NDArray[np.int64], kind: str) -> float:
    found = minimize_scalar(
        lambda log_t: _losses(logits / np.exp(log_t), targets, kind).sum() + log_t**2 / 2,
        bounds=_LIMITS,
        method="bounded",
    )
    return float(np.exp(found.x))


def _threshold(known: Probabilities, none: Probabilities) -> float:
    """A float32, so that it parts the same pictures in whatever precision it is compared."""
    if not len(none):
        return float(np.float32(np.quantile(known, _KNOWN_LOST)))
    values = np.unique(np.concatenate([known, none]))
    middle = values[:-1] + (values[1:] - values[:-1]) / 2
    between = np.concatenate([[np.float32(0)], np.where(middle > values[:-1], middle, values[1:])])
    kept = 1 - np.searchsorted(np.sort(known), between) / len(known)
    found = np.searchsorted(np.sort(none), between) / len(none)
    return float(between[np.argmax(kept + found)])
