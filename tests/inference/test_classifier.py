"""Zero-shot, and a few labelled pictures on top of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.evaluation import classifier_weights

LABELS = ["red bird", "green wall", "blue dog"]
COLOURS = [(210, 40, 30), (40, 190, 50), (40, 50, 210)]


def pictures(n: int, seed: int = 0) -> tuple[list[Image.Image], list[str]]:
    """n pictures of each colour, with noise; the tiny model was taught nothing, so only ``fit`` can name them."""
    draw = np.random.default_rng(seed)
    images, labels = [], []
    for colour, label in zip(COLOURS, LABELS, strict=True):
        for _ in range(n):
            pixels = np.clip(np.array(colour) + draw.normal(0, 50, (32, 32, 3)), 0, 255).astype(np.uint8)
            images.append(Image.fromarray(pixels))
            labels.append(label)
    return images, labels


def test_zero_shot_is_the_mean_of_its_prompts(model: Any) -> None:
    images, _ = pictures(2)
    templates = ["a photo of a {}.", "{} on the wall"]
    classifier = model.classifier(LABELS, templates)
    classes = []
    for label in LABELS:
        rows = model.encode_text([t.replace("{}", label) for t in templates])
        classes.append(rows.mean(0) / np.linalg.norm(rows.mean(0)))
    cosines = model.encode_image(images) @ np.stack(classes).T
    np.testing.assert_allclose(classifier.decision_function(images), model.scale * cosines, atol=1e-3)
    exponentials = np.exp(model.scale * (cosines - cosines.max(1, keepdims=True)))
    expected = exponentials / exponentials.sum(1, keepdims=True)
    found = classifier.predict_proba(images)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    assert found.shape == (6, 3) and classifier.classes_ == LABELS
    assert classifier.predict(images) == [LABELS[i] for i in expected.argmax(1)]


def test_top_k_is_sorted_and_as_long_as_there_are_labels(model: Any) -> None:
    images, _ = pictures(1)
    classifier = model.classifier(LABELS)
    rows = classifier.predict_proba(images)
    for k, length in ((1, 1), (2, 2), (3, 3), (10, 3)):
        found = classifier.top_k(images, k)
        assert len(found) == 3 and all(len(best) == length for best in found)
        for best, row in zip(found, rows, strict=True):
            values = [p for _, p in best]
            assert values == sorted(values, reverse=True)
            assert all(p == pytest.approx(row[LABELS.index(name)]) for name, p in best)
    with pytest.raises(ClipkitError, match="k is 0"):
        classifier.top_k(images, 0)


def test_one_picture(model: Any) -> None:
    images, _ = pictures(1)
    classifier = model.classifier(LABELS)
    assert len(classifier.predict(images[0])) == 1 and classifier.predict_proba(images[0]).shape == (1, 3)


def test_a_sigmoid_model_gives_each_label_its_own_probability(sigmoid_model: Any) -> None:
    images, _ = pictures(1)
    few, many = sigmoid_model.classifier(LABELS[:2]), sigmoid_model.classifier(LABELS)
    cosines = sigmoid_model.encode_image(images) @ few.weights.T
    expected = 1 / (1 + np.exp(-(sigmoid_model.scale * cosines + sigmoid_model.bias)))
    np.testing.assert_allclose(few.predict_proba(images), expected, rtol=1e-4)
    np.testing.assert_allclose(many.predict_proba(images)[:, :2], expected, rtol=1e-4)
    assert many.predict_proba(images).sum(1).max() < 0.5, "with its bias of -10 nothing is likely"


@pytest.mark.filterwarnings("error")
def test_extreme_logits_do_not_overflow(model: Any, sigmoid_model: Any, monkeypatch: Any) -> None:
    for each in (model, sigmoid_model):
        classifier = each.classifier(LABELS)
        monkeypatch.setattr(
            classifier, "decision_function", lambda images: np.array([[-500, 0, 500]], dtype=np.float32)
        )
        found = classifier.predict_proba([None])
        assert np.isfinite(found).all() and found[0, 2] == pytest.approx(1) and found[0, 0] == pytest.approx(0)


def test_fit_learns_from_a_few_pictures(model: Any) -> None:
    train, labels = pictures(6)
    test, truth = pictures(20, seed=1)
    classifier = model.classifier(LABELS)
    before = classifier.score(test, truth)
    assert classifier.fit(train, labels) is classifier
    after = classifier.score(test, truth)
    assert after > 0.9 and after > before + 0.2
    assert after == pytest.approx(np.mean([p == t for p, t in zip(classifier.predict(test), truth, strict=True)]))
    np.testing.assert_allclose(classifier.predict_proba(test).sum(1), 1, atol=1e-5)


def test_the_gradient_of_its_objective(model: Any, monkeypatch: Any) -> None:
    """Against central differences, at the start and elsewhere; and it starts zero-shot."""
    import scipy.optimize

    seen: list[Any] = []
    real = scipy.optimize.minimize

    def spy(fun: Any, x0: Any, *args: Any, **kwargs: Any) -> Any:
        assert kwargs.get("jac") is True
        seen.append((fun, np.array(x0), real(fun, x0, *args, **kwargs)))
        return seen[-1][2]

    monkeypatch.setattr(scipy.optimize, "minimize", spy)
    train, labels = pictures(4)
    classifier = model.classifier(LABELS, "photo")
    classifier.fit(train, labels, strength=3.0)
    fun, start, found = seen[0]
    zero_shot = classifier_weights(model.encode_text, LABELS, "photo")
    np.testing.assert_allclose(start[: zero_shot.size].reshape(zero_shot.shape), zero_shot, atol=1e-6)
    assert not start[zero_shot.size :].any()

    x = model.encode_image(train).astype(np.float64)
    target = np.array([LABELS.index(name) for name in labels])

    def by_hand(flat: np.ndarray) -> float:
        w, b = flat[: zero_shot.size].reshape(zero_shot.shape), flat[zero_shot.size :]
        z = model.scale * x @ w.T + b
        log_p = z - np.log(np.exp(z - z.max(1, keepdims=True)).sum(1, keepdims=True)) - z.max(1, keepdims=True)
        pull = 3.0 / (2 * len(x)) * ((w - zero_shot) ** 2).sum()
        return float(-log_p[np.arange(len(x)), target].mean() + pull)

    assert fun(start)[0] == pytest.approx(by_hand(start), rel=1e-5)
    draw = np.random.default_rng(0)
    for point in (start, start + 0.1 * draw.normal(size=start.shape)):
        value, gradient = fun(point)
        for i in draw.choice(len(point), 25, replace=False):
            step = np.zeros_like(point)
            step[i] = 1e-6
            slope = (fun(point + step)[0] - fun(point - step)[0]) / 2e-6
            assert gradient[i] == pytest.approx(slope, abs=1e-5, rel=1e-4)
        assert np.isfinite(value)
    assert fun(found.x)[0] < fun(start)[0] and np.abs(fun(found.x)[1]).max() < 1e-2


def test_a_strong_pull_is_zero_shot(model: Any) -> None:
    train, labels = pictures(3)
    zero = model.classifier(LABELS)
    fitted = model.classifier(LABELS).fit(train, labels, strength=1e9)
    np.testing.assert_allclose(fitted.weights, zero.weights, atol=1e-5)


def test_a_class_without_examples_keeps_its_zero_shot_vector(model: Any) -> None:
    """Two of three classes have examples; the third must be found as before, not be pushed away by a free bias."""
    train, labels = pictures(6)
    zero = model.classifier(LABELS)
    fitted = model.classifier(LABELS).fit(train[:12], labels[:12])
    np.testing.assert_allclose(fitted.weights[2], zero.weights[2], atol=1e-3)
    assert abs(float(fitted.intercept[2])) < 0.1


def test_fit_twice_is_fit_once(model: Any) -> None:
    train, labels = pictures(4)
    one = model.classifier(LABELS).fit(train, labels)
    two = model.classifier(LABELS).fit(train[:2], labels[:2]).fit(train, labels)
    np.testing.assert_allclose(one.weights, two.weights, atol=1e-4)


def test_fit_refuses_what_does_not_fit(model: Any) -> None:
    train, labels = pictures(2)
    classifier = model.classifier(LABELS)
    with pytest.raises(ClipkitError, match="6 pictures and 5 labels"):
        classifier.fit(train, labels[:5])
    with pytest.raises(ClipkitError, match="0 pictures"):
        classifier.fit([], [])
    with pytest.raises(ClipkitError, match="purple cat"):
        classifier.fit(train, [*labels[:5], "purple cat"])
    with pytest.raises(ClipkitError, match="labels"):
        classifier.score(train, labels[:5])


@pytest.mark.parametrize(
    ("labels", "templates", "named"),
    [
        ([], None, "empty"),
        (["a", "b", "a"], None, "'a'"),
        (["a", ""], None, "name"),
        ("bird", None, "bird"),
        (["a", "b"], "no place for it", "{}"),
        (["a", "b"], ["good {}", "bad"], "bad"),
        (["a", "b"], [], "empty"),
        (["a", 3], None, "3"),
    ],
)
def test_labels_and_templates_that_make_no_sense(model: Any, labels: Any, templates: Any, named: str) -> None:
    with pytest.raises(ClipkitError) as caught:
        model.classifier(labels, templates)
    assert named in str(caught.value) and "\n" not in str(caught.value)


def test_a_set_of_templates_by_name(model: Any) -> None:
    from clipkit.evaluation import TEMPLATES

    for name, templates in TEMPLATES.items():
        assert np.array_equal(model.classifier(LABELS, name).weights, model.classifier(LABELS, templates).weights)
