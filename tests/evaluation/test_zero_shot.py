"""Zero-shot classification against a full sort, and prompts as a reader would write them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.evaluation import TEMPLATES, class_prompts, classifier_weights, fill, zero_shot


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def problem(seed: int, n: int, c: int, noise: float = 1.2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = unit(rng.normal(size=(c, 16)))
    labels = rng.choice(c, size=n, p=rng.dirichlet(np.full(c, 2.0)))
    return unit(classes[labels] + noise * unit(rng.normal(size=(n, 16)))), classes, labels


def names(c: int) -> list[str]:
    return [f"class {i}" for i in range(c)]


@pytest.mark.parametrize("seed", range(4))
def test_equals_a_full_sort(seed: int) -> None:
    image, classes, labels = problem(seed, 300, 12)
    report = zero_shot(image, classes, labels, names(12), bootstrap=0)
    order = np.argsort(-(image.astype(np.float64) @ classes.astype(np.float64).T), axis=1)
    right = order[:, 0] == labels
    seen = np.unique(labels)
    assert report.top1.value == pytest.approx(right.mean())
    assert report.top5 is not None
    assert report.top5.value == pytest.approx((order[:, :5] == labels[:, None]).any(1).mean())
    assert report.mean_per_class.value == pytest.approx(np.mean([right[labels == c].mean() for c in seen]))
    for c in seen:
        assert report.per_class[f"class {c}"].value == pytest.approx(right[labels == c].mean())
    confusion = np.zeros((12, 12), int)
    np.add.at(confusion, (labels, order[:, 0]), 1)
    np.testing.assert_array_equal(report.confusion_CC, confusion)
    assert report.chance == 1 / 12
    assert report.majority == pytest.approx(np.bincount(labels).max() / 300)
    assert report.class_counts == tuple(np.bincount(labels, minlength=12))
    assert 0.2 < report.top1.value < 0.98


def test_intervals_hold_the_value_and_the_mean_per_class_differs_from_top1() -> None:
    image, classes, labels = problem(5, 300, 8)
    report = zero_shot(image, classes, labels, names(8))
    for interval in (report.top1, report.mean_per_class):
        assert interval.low < interval.value < interval.high
        assert interval.high - interval.low < 0.2
    assert report.top1.value != report.mean_per_class.value


def test_a_majority_guesser_shows_in_the_mean_per_class() -> None:
    classes = np.eye(3, dtype=np.float32)
    labels = np.array([0] * 90 + [1] * 5 + [2] * 5)
    report = zero_shot(classes[np.zeros(100, int)], classes, labels, ["a", "b", "c"])
    assert report.top1.value == report.majority == 0.9
    assert report.mean_per_class.value == pytest.approx(1 / 3)


@pytest.mark.parametrize("width", [5, 384])
def test_equal_class_vectors_are_never_right(width: int) -> None:
    row = unit(np.random.default_rng(0).normal(size=(1, width)))
    labels = np.arange(60) % 6
    report = zero_shot(np.repeat(row, 60, 0), np.repeat(row, 6, 0), labels, names(6))
    assert report.top1.value == 0 and report.top5 is not None and report.top5.value == 0
    assert np.trace(report.confusion_CC) == 0 and report.confusion_CC.sum() == 60


def test_order_of_pictures_does_not_matter() -> None:
    image, classes, labels = problem(6, 200, 7)
    order = np.random.default_rng(0).permutation(200)
    shuffled = zero_shot(image[order], classes, labels[order], names(7))
    assert shuffled.to_dict() == zero_shot(image, classes, labels, names(7)).to_dict()


def test_labels_may_be_names_and_arrays_may_be_tensors() -> None:
    image, classes, labels = problem(7, 50, 4)
    expected = zero_shot(image, classes, labels, names(4)).to_dict()
    by_name = [f"class {label}" for label in labels]
    assert zero_shot(image, classes, by_name, names(4)).to_dict() == expected
    tensors = zero_shot(torch.tensor(image), torch.tensor(classes), torch.tensor(labels), names(4))
    assert tensors.to_dict() == expected


def test_classes_without_samples_and_few_classes() -> None:
    image, classes, labels = problem(8, 50, 6)
    report = zero_shot(image, classes, np.minimum(labels, 3), names(6))
    assert set(report.per_class) <= set(names(4)) and report.chance == 1 / 6
    assert f"({len(report.per_class)} of them with pictures)" in report.protocol
    assert zero_shot(image, classes[:5], np.minimum(labels, 4), names(5)).top5 is None
    alone = zero_shot(image, classes[:1], labels * 0, ["only"])
    assert alone.top1.value == alone.chance == 1


def test_the_report_is_json_and_one_line() -> None:
    image, classes, labels = problem(9, 50, 6)
    report = zero_shot(image, classes, labels, names(6))
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["confusion"][0][0] >= 0
    assert "\n" not in str(report) and "majority" in str(report)
    assert report.metrics()["zero_shot_top1"] == report.top1.value


def test_wrong_inputs_are_named() -> None:
    image, classes, labels = problem(10, 20, 3)
    labels[:3] = 0, 1, 2
    by_name = [f"class {label}" for label in labels]
    cases = [
        ((image, classes, labels + 1, names(3)), r"labels_N\[\d+\] is 3, but there are 3 classes"),
        ((image, classes, ["dog", *by_name[1:]], names(3)), r"labels_N\[0\] is 'dog', .* 3 classes"),
        ((image, classes, labels[:5], names(3)), r"labels_N has shape \(5,\)"),
        ((image, classes, by_name[:5], names(3)), r"labels_N has shape \(5,\)"),
        ((image, classes, labels, names(4)), "class_CD has 3 rows for 4 class names"),
        ((image, classes, labels, ["a", "b", "a"]), "'a' stands for classes 0 and 2"),
        ((image, classes, labels, ["a", " ", "c"]), r"class_names\[1\] is ' '"),
        ((image * 2, classes, labels, names(3)), r"image_ND\[0\] has norm 2"),
        ((image, classes * np.nan, labels, names(3)), r"class_CD\[0, 0\] is nan"),
        ((image, unit(classes[:, :4]), labels, names(3)), "image_ND has 16 dimensions and class_CD 4"),
    ]
    for arguments, message in cases:
        with pytest.raises(ClipkitError, match=message) as error:
            zero_shot(*arguments)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a photo of a dog."),
        ("apple", "a photo of an apple."),
        ("Arctic fox", "a photo of an Arctic fox."),
        ("hourglass", "a photo of an hourglass."),
        ("unicorn", "a photo of a unicorn."),
        ("uniform", "a photo of a uniform."),
        ("umbrella", "a photo of an umbrella."),
        ("unidentified object", "a photo of an unidentified object."),
        ("European robin", "a photo of a European robin."),
        ("one-way street", "a photo of a one-way street."),
        ("ukulele", "a photo of a ukulele."),
        ("éclair", "a photo of an éclair."),
        ("the moon", "a photo of the moon."),
        ("A cat", "a photo of A cat."),
        ("golden_retriever", "a photo of a golden retriever."),
        ("polar-bear", "a photo of a polar bear."),
        ("red T-shirt", "a photo of a red T-shirt."),
        ("{}", "a photo of a {}."),
    ],
)
def test_names_fit_into_a_sentence(name: str, expected: str) -> None:
    assert fill("a photo of a {}.", name) == expected


def test_articles_elsewhere_are_left_alone() -> None:
    assert fill("An {} on a table", "dog") == "A dog on a table"
    assert fill("a small {}", "owl") == "a small owl"
    assert fill("{}", "owl") == "owl"
    assert fill("pasta {}", "owl") == "pasta owl"


def test_every_template_of_ours_is_valid() -> None:
    assert TEMPLATES["none"] == ("{}",) and TEMPLATES["photo"] == ("a photo of a {}.",)
    for name in TEMPLATES:
        prompts = class_prompts(["apple", "dog"], name)
        assert len(prompts) == 2 and len(set(prompts[0])) == len(TEMPLATES[name])
        assert all("a apple" not in text for text in prompts[0])
    assert class_prompts(["dog"], "a {} in the snow") == [["a dog in the snow"]]


def test_weights_are_the_normalised_mean_of_normalised_prompts() -> None:
    table = {"x cat": [3, 0], "y cat": [0, 0.1], "x dog": [0, -2], "y dog": [-1, -1]}
    weights = classifier_weights(
        lambda texts: torch.tensor([table[t] for t in texts]), ["cat", "dog"], ["x {}", "y {}"]
    )
    dog = np.array([0, -1]) + np.array([-1, -1]) / 2**0.5
    np.testing.assert_allclose(weights, [[0.5**0.5, 0.5**0.5], dog / np.linalg.norm(dog)], atol=1e-6)
    assert weights.dtype == np.float32


def test_many_classes_are_encoded_in_parts_and_keep_their_order() -> None:
    calls = []

    def encode(texts: list[str]) -> np.ndarray:
        calls.append(len(texts))
        angles = np.array([int(text.split()[-1]) for text in texts]) / 5000
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    weights = classifier_weights(encode, [f"{i}" for i in range(3000)], ["{}", "number {}"])
    assert len(calls) == 2 and sum(calls) == 6000
    np.testing.assert_allclose(np.arctan2(weights[:, 1], weights[:, 0]), np.arange(3000) / 5000, atol=1e-5)


def test_wrong_templates_and_encoders_are_named() -> None:
    def encode(texts: list[str]) -> np.ndarray:
        return np.ones((len(texts), 4))

    for templates in (["a photo"], ["{} and {}"], ["ok {}", ""]):
        with pytest.raises(ClipkitError, match=r"exactly one \{\}"):
            classifier_weights(encode, ["a"], templates)
    with pytest.raises(ClipkitError, match="no template set is called 'foto'"):
        classifier_weights(encode, ["a"], "foto")
    with pytest.raises(ClipkitError, match="templates is empty"):
        classifier_weights(encode, ["a"], [])
    with pytest.raises(ClipkitError, match="class_names is empty"):
        classifier_weights(encode, [], "photo")
    with pytest.raises(ClipkitError, match="single text 'cat'"):
        classifier_weights(encode, "cat", "photo")
    with pytest.raises(ClipkitError, match=r"shape \(4,\) for 1 texts"):
        classifier_weights(lambda texts: np.ones(4), ["a"], "photo")
    with pytest.raises(ClipkitError, match=r"'a photo of an owl\.' has norm nan"):
        classifier_weights(lambda texts: np.full((len(texts), 4), np.nan), ["owl"], "photo")
    opposite = np.array([[1.0, 0], [-1.0, 0]])
    with pytest.raises(ClipkitError, match="'owl' has norm 0"):
        classifier_weights(lambda texts: opposite, ["owl"], ["x {}", "y {}"])
