"""Calibration finds the temperature that made the labels, and the threshold that parts known from unknown."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from clipkit.errors import ClipkitError
from clipkit.inference.calibration import calibrate, expected_calibration_error


def drawn(temperature: float, kind: str, n: int = 4000, classes: int = 6) -> tuple[Any, Any]:
    """Logits whose probabilities are right once they are divided by ``temperature``."""
    draw = np.random.default_rng(0)
    true = draw.normal(size=(n, classes)) * 2
    if kind == "softmax":
        targets = np.array([draw.choice(classes, p=p) for p in softmax(true, axis=1)])
    else:  # one yes among the classes
        targets = draw.integers(0, classes, n)
        true = np.where(np.arange(classes) == targets[:, None], 1.0, -1.0) * np.abs(true)
        flip = draw.random(true.shape) < expit(-np.abs(true))
        true = np.where(flip, -true, true)
    return true * temperature, targets


@pytest.mark.parametrize("temperature", [0.3, 1.0, 7.0])
@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_the_temperature_that_was_put_in_comes_out(temperature: float, kind: str) -> None:
    logits, targets = drawn(temperature, kind)
    found = calibrate(logits, targets, kind)
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.nll_after <= found.nll_before * (1 + 1e-3)
    if kind == "softmax":
        assert found.ece_after < 0.025  # 4,000 pictures in 15 bins: 0.02 is chance
        if temperature != 1:
            assert found.ece_before > 0.08
    assert found.accuracy == (logits.argmax(axis=1) == targets).mean()
    again = calibrate(logits / temperature, targets, kind)
    assert again.temperature == pytest.approx(found.temperature / temperature, rel=1e-3)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_pictures_that_are_all_named_right_are_no_proof_of_certainty(kind: str, scale: float) -> None:
    draw = np.random.default_rng(4)
    logits = draw.normal(size=(90, 4))
    targets = np.where(np.arange(90) < 60, logits.argmax(axis=1), -1)
    if kind == "sigmoid":  # the right class alone is above 0
        logits -= np.sort(logits, axis=1)[:, -2:].mean(axis=1, keepdims=True)
    found = calibrate(logits * scale, targets, kind)
    known, none = logits[:60] * scale, logits[60:] * scale
    best, others = (compared(rows, found.temperature, kind) for rows in (known, none))
    assert found.accuracy == 1 and found.temperature > 0.01 and 0.9 < np.median(best) < 1
    assert np.float32(found.none_below) < 1 and found.none_found == (others < np.float32(found.none_below)).mean()
    fewer = calibrate(known[:10], targets[:10], kind)
    assert abs(np.log(fewer.temperature)) < abs(np.log(found.temperature)), "fewer pictures prove less"


def compared(logits: Any, temperature: float, kind: str) -> Any:
    """float32: the best probabilities, as ``Classifier`` compares them with its threshold."""
    logits = logits / temperature
    return (softmax(logits, axis=1) if kind == "softmax" else expit(logits)).max(axis=1).astype(np.float32)


def test_beside_many_pictures_the_prior_counts_for_nothing() -> None:
    logits, targets = drawn(5.0, "softmax", n=1000)
    tried = np.exp(np.linspace(np.log(4), np.log(6), 2001))
    losses = [-log_softmax(logits / t, axis=1)[np.arange(1000), targets].sum() for t in tried]
    assert calibrate(logits, targets, "softmax").temperature == pytest.approx(tried[np.argmin(losses)], rel=5e-3)


def test_the_figures_are_those_of_the_comparisons_that_are_made() -> None:
    """Of float32, where a sure model's probabilities are a few numbers just below 1."""
    margins = np.repeat([17.5, 16.5, 15.5], 20)  # 1.0 and the two float32 below it
    logits = np.stack([margins, np.zeros(60)], axis=1)
    targets = np.repeat([0, -1, -1], 20)
    found = calibrate(logits, targets, "softmax")
    best = compared(logits, found.temperature, "softmax")
    assert len(np.unique(best)) == 3 and (found.known_kept, found.none_found) == (1, 1)
    for threshold in (found.none_below, np.float32(found.none_below)):
        assert (best >= threshold).tolist() == (targets == 0).tolist()
        assert [float(p) >= threshold for p in best] == (targets == 0).tolist()
    logits[20:40, 0] = 18.5  # none of the classes, and 1.0 too
    found = calibrate(logits, targets, "softmax")
    best = compared(logits, found.temperature, "softmax")
    assert (found.known_kept, found.none_found) == (1, 0.5)
    assert (best[20:] < np.float32(found.none_below)).mean() == 0.5


def test_the_error_is_the_papers() -> None:
    """Bin by bin, in the plainest way."""
    draw = np.random.default_rng(1)
    confidence, right = draw.random(500), draw.random(500) < 0.7
    confidence[:3] = (0.0, 1.0, 1 / 3)
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(500) if b == min(int(confidence[i] * 15), 14)]
        if inside:
            expected += abs(right[inside].mean() - confidence[inside].mean()) * len(inside) / 500
    assert expected_calibration_error(confidence, right) == pytest.approx(expected, abs=1e-12)
    assert expected_calibration_error(np.ones(9), np.ones(9, dtype=bool)) == 0


def test_figures_after_are_those_of_pictures_that_were_not_fitted_on() -> None:
    """Noise cannot be calibrated: on itself the temperature would look better than it is."""
    draw = np.random.default_rng(2)
    logits, targets = draw.normal(size=(12, 40)) * 5, draw.integers(0, 40, 12)
    found = calibrate(logits, targets, "softmax")
    part = np.random.default_rng(0).permutation(12) % 5
    losses = []
    for fold in range(5):
        t = calibrate(logits[part != fold], targets[part != fold], "softmax").temperature
        p = softmax(logits[part == fold] / t, axis=1)
        losses += (-np.log(p[np.arange(len(p)), targets[part == fold]])).tolist()
    assert found.nll_after == pytest.approx(np.mean(losses), rel=1e-6)


def test_the_threshold_is_the_best_there_is() -> None:
    draw = np.random.default_rng(3)
    known, none = draw.normal(size=(300, 5)), draw.normal(size=(80, 5)) * 0.5
    targets = known.argmax(axis=1)
    known[np.arange(300), targets] += 1.5
    found = calibrate(np.concatenate([known, none]), np.concatenate([targets, np.full(80, -1)]), "softmax")
    best = softmax(np.concatenate([known, none]) / found.temperature, axis=1).max(axis=1)
    every = np.concatenate([np.linspace(0, 1.01, 2000), best])
    reached = max((best[:300] >= t).mean() + (best[300:] < t).mean() for t in every)
    assert found.known_kept + float(found.none_found or 0) == pytest.approx(reached)
    assert found.known_kept == (best[:300] >= found.none_below).mean()
    assert (found.n, found.n_none) == (300, 80)


def test_without_others_most_of_the_known_stay() -> None:
    logits, targets = drawn(2.0, "softmax", n=400)
    found = calibrate(logits, targets, "softmax")
    assert found.none_found is None and 0.94 <= found.known_kept <= 0.96
    with pytest.raises(ClipkitError, match="4 labelled pictures: at least 5"):
        calibrate(logits[:9], np.where(np.arange(9) < 4, targets[:9], -1), "softmax")


def test_a_classifier_is_calibrated(model: Any, picture: Any) -> None:
    pictures = [picture(i) for i in range(12)]
    classifier = model.classifier(["red", "green", "blue"])
    plain = classifier.predict(pictures)
    labels = [*plain[:8], None, None, None, None]
    with pytest.raises(ClipkitError, match="calibrate"):
        classifier.predict_or_none(pictures)
    before = classifier.decision_function(pictures).astype(np.float64)
    found = classifier.calibrate(pictures, labels)
    assert classifier.temperature == found.temperature and found.n == 8 and found.n_none == 4
    np.testing.assert_allclose(
        classifier.predict_proba(pictures), softmax(before / found.temperature, axis=1), atol=1e-5
    )
    assert classifier.predict(pictures) == plain
    top = classifier.predict_proba(pictures).max(axis=1)
    expected = [label if p >= found.none_below else None for label, p in zip(plain, top, strict=True)]
    assert classifier.predict_or_none(pictures) == expected
    for wrong, said in ((labels[:3], "12 pictures and 3 labels"), (["pink", *labels[1:]], "'pink' is not among")):
        with pytest.raises(ClipkitError, match=said):
            classifier.calibrate(pictures, wrong)
    classifier.fit(pictures[:8], labels[:8])
    assert classifier.temperature == 1 and classifier.none_below is None
