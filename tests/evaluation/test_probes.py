"""Probes against scikit-learn, against dense float64 references, and against ties, order and scale."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.neighbors import KNeighborsClassifier

from clipkit.errors import ClipkitError
from clipkit.evaluation import hold_out, knn, linear_probe, nested_subsets, probes

Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def blobs(n: int = 300, m: int = 120, d: int = 10, classes: int = 4, noise: float = 1.5, seed: int = 0) -> Split:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, d))
    label_N, label_M = np.arange(n) % classes, rng.integers(0, classes, m)
    return (
        (centres[label_N] + noise * rng.normal(size=(n, d))).astype(np.float32),
        label_N,
        (centres[label_M] + noise * rng.normal(size=(m, d))).astype(np.float32),
        label_M,
    )


# The linear probe


def test_minimises_mean_cross_entropy_and_half_l2_of_standardised_features() -> None:
    train, label, test, truth = blobs(classes=3)
    train[:, 0] *= 1000
    test[:, 0] *= 1000
    l2 = 0.05
    mean, std = train.mean(0), train.std(0)
    x, y = (train - mean) / std, np.eye(3)[label]

    def objective(flat: np.ndarray) -> float:
        weight, bias = flat[:30].reshape(10, 3), flat[30:]
        logits = x @ weight + bias
        logsumexp = np.log(np.exp(logits).sum(1))
        return float((logsumexp - (logits * y).sum(1)).mean() + l2 / 2 * (weight**2).sum())

    best = minimize(objective, np.zeros(33), method="BFGS").x
    predicted = ((test - mean) / std @ best[:30].reshape(10, 3) + best[30:]).argmax(1)
    report = linear_probe(train, label, test, truth, l2=(l2,), bootstrap=0)
    assert (report.predicted_N == predicted).mean() >= 0.99
    assert report.top1.value == pytest.approx((predicted == truth).mean(), abs=0.01)
    model = probes._fit(*(lambda a: (a, label))(probes._standardised(train, test)[0]), l2)
    weight = best[:30].reshape(10, 3).T
    np.testing.assert_allclose(model.coef_, weight - weight.mean(0) + model.coef_.mean(0), atol=2e-3)


def test_the_penalty_is_chosen_on_training_samples_alone() -> None:
    train, label, test, truth = blobs(n=60, d=50, noise=2.5)
    report = linear_probe(train, label, test, truth)
    fit, held = hold_out(label, 0.2, 0)
    singles = {
        l2: linear_probe(train[fit], label[fit], train[held], label[held], l2=(l2,)).top1.value for l2 in probes.L2
    }
    assert report.setting == max(singles, key=lambda l2: (singles[l2], l2)), "of equals the strongest"
    shuffled = linear_probe(train, label, test, np.random.default_rng(0).permutation(truth))
    assert shuffled.setting == report.setting
    assert linear_probe(train, label, test, truth, l2=tuple(reversed(probes.L2))).setting == report.setting


def test_scale_and_offset_of_a_feature_do_not_matter() -> None:
    train, label, test, truth = blobs()
    scale, offset = np.logspace(-3, 3, 10), np.linspace(-5, 5, 10)
    plain = linear_probe(train, label, test, truth, l2=(1e-2,))
    other = linear_probe(train * scale + offset, label, test * scale + offset, truth, l2=(1e-2,))
    assert (plain.predicted_N == other.predicted_N).mean() > 0.98
    with_constant = [np.concatenate([rows, np.full((len(rows), 1), 7.7)], 1) for rows in (train, test)]
    with_constant[1][0, -1] = 7.8  # must not be blown up
    constant = linear_probe(with_constant[0], label, with_constant[1], truth, l2=(1e-2,))
    assert (plain.predicted_N == constant.predicted_N).all()


def test_the_linear_probe_is_deterministic() -> None:
    data = blobs()
    first, second = linear_probe(*data), linear_probe(*data)
    assert first.to_dict() == second.to_dict() and (first.predicted_N == second.predicted_N).all()


# Neighbours


@pytest.mark.parametrize("temperature", [0.07, 0.5, None])
@pytest.mark.parametrize("k", [1, 7, 20])
def test_equals_scikit_learn_where_nothing_ties(k: int, temperature: float | None) -> None:
    train, label, test, truth = blobs(classes=3 if temperature else 2)
    k = k if temperature or k % 2 else k + 1  # no equal votes
    weights = "uniform" if temperature is None else lambda distance: np.exp((1 - distance) / temperature)
    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights).fit(train, label)
    report = knn(train, label, test, truth, k=k, temperature=temperature)
    np.testing.assert_array_equal(report.predicted_N, oracle.predict(test))
    assert report.top1.value == pytest.approx(oracle.score(test, truth))
    assert report.setting == k and report.kind == ("knn" if temperature else "knn_majority")


def test_the_weighted_vote_is_that_of_the_papers() -> None:
    """One neighbour at cosine 1 against two at cosine 0.9: exp(1 / 0.07) is more than twice exp(0.9 / 0.07)."""
    near, side = [1.0, 0.0], [0.9, np.sqrt(1 - 0.81)]
    arguments = ([near, side, side], [0, 1, 1], [near], [0])
    assert knn(*arguments).top1.value == 1
    assert knn(*arguments, temperature=None).top1.value == 0
    assert knn(*arguments, temperature=0.15).top1.value == 0  # exp(0.1 / 0.15) < 2
    assert knn(*arguments, temperature=0.14).top1.value == 1  # exp(0.1 / 0.14) > 2


def test_k_is_cut_to_the_training_samples() -> None:
    train, label, test, truth = blobs(n=9)
    assert knn(train, label, test, truth).setting == 9
    assert knn(train, label, test, truth).to_dict() == knn(train, label, test, truth, k=9).to_dict()


def test_order_and_tiles_change_nothing_even_with_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    train = rng.integers(-1, 2, size=(200, 3)).astype(np.float32) + np.float32(0.01)  # 27 points: ties everywhere
    test = rng.integers(-1, 2, size=(60, 3)).astype(np.float32) + np.float32(0.01)
    label, truth = rng.integers(0, 3, 200), rng.integers(0, 3, 60)
    for temperature in (0.07, None):
        plain = knn(train, label, test, truth, k=5, temperature=temperature)
        for seed in range(5):
            order = np.random.default_rng(seed).permutation(200)
            again = knn(train[order], label[order], test, truth, k=5, temperature=temperature)
            assert again.top1 == plain.top1 and again.mean_per_class == plain.mean_per_class
        with monkeypatch.context() as patch:
            patch.setattr(probes, "_CELLS", 200 * 7)
            assert knn(train, label, test, truth, k=5, temperature=temperature).top1 == plain.top1
        longer = knn(train * rng.uniform(0.5, 3, (200, 1)), label, 9 * test, truth, k=5, temperature=temperature)
        assert longer.top1.value == pytest.approx(plain.top1.value, abs=0.04)


def test_cosines_that_float32_cannot_tell_apart_are_ranked() -> None:
    rng = np.random.default_rng(0)
    query = rng.normal(size=(20, 64))
    train = np.concatenate([row + 1e-4 * rng.normal(size=(30, 64)) for row in query])
    label = rng.integers(0, 2, 600)
    cosine = (query / np.linalg.norm(query, axis=1)[:, None]) @ (train / np.linalg.norm(train, axis=1)[:, None]).T
    truth = label[cosine.argmax(1)]
    assert knn(train, label, query, truth, k=1).top1.value == 1
    nearest = np.argsort(-cosine, axis=1)[:, :7]
    majority = (label[nearest].mean(1) > 0.5).astype(int)
    assert knn(train, label, query, majority, k=7, temperature=None).top1.value == 1


def test_ties_share_the_last_places_and_count_against() -> None:
    # four equal neighbours for k = 2: three of class 1 and one of class 0 share two places, 1.5 against 0.5
    same = [[1.0, 0.0]] * 4
    assert knn(same, [1, 1, 0, 1], [[1.0, 0.0]], [1], k=2).top1.value == 1
    assert knn(same, [1, 1, 0, 1], [[1.0, 0.0]], [0], k=2).top1.value == 0
    # one place is left for three that tie: one vote against one, and not against three
    train = [[1.0, 0.0], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]]
    assert knn(train, [0, 1, 1, 1], [[1.0, 0.0]], [0], k=2, temperature=None).top1.value == 1
    # a draw is nobody's
    for label in (0, 1):
        assert knn(same, [0, 0, 1, 1], [[1.0, 0.0]], [label], k=4).top1.value == 0
        assert knn(same, [0, 0, 1, 1], [[1.0, 0.0]], [label], k=4, temperature=None).top1.value == 0
    # plain votes that are equal go to the nearer ones
    train = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]]
    assert knn(train, [0, 0, 1, 1], [[1.0, 0.2]], [0], k=4, temperature=None).top1.value == 1
    assert knn(train, [0, 0, 1, 1], [[1.0, 0.2]], [1], k=4, temperature=None).top1.value == 0


# Both


@pytest.mark.parametrize("probe", [linear_probe, knn])
def test_the_report(probe: object) -> None:
    train, label, test, truth = blobs(m=400)
    names = np.array(["cat", "dog", "emu", "fox"])
    report = probe(train, names[label], test, names[truth])  # type: ignore[operator]
    assert report.class_names == ("cat", "dog", "emu", "fox") and report.chance == 0.25
    right = report.predicted_N == truth
    assert report.top1.value == pytest.approx(right.mean()) and report.top1.low < right.mean() < report.top1.high
    assert report.mean_per_class.value == pytest.approx(np.mean([right[truth == c].mean() for c in range(4)]))
    assert report.majority == pytest.approx(np.bincount(truth).max() / 400)
    assert (report.n_train, report.n_test) == (300, 400)
    assert report.top1.value > report.majority, "it has learned"
    assert probe(train, label, test, truth).top1 == report.top1  # type: ignore[operator]
    figures = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert figures["top1"]["value"] == report.top1.value and "400 test" in str(report)


@pytest.mark.parametrize("probe", [linear_probe, knn])
@pytest.mark.parametrize(
    "change, named",
    [
        ({0: np.ones(5)}, "train_ND has shape"),
        ({2: np.full((120, 10), np.nan)}, r"test_MD\[0\] holds NaN"),
        ({2: np.ones((120, 9))}, "10 dimensions and test_MD 9"),
        ({1: np.zeros(300, int)}, "one class"),
        ({1: np.zeros(299, int)}, r"train_labels has shape \(299,\)"),
        ({3: np.full(120, 9)}, r"test_labels\[0\] is 9, which no training sample has"),
        ({3: np.full(120, "cat")}, "two kinds"),
        ({3: np.zeros(120)}, "whole numbers or texts"),
    ],
)
def test_mistakes_are_named(probe: object, change: dict[int, np.ndarray], named: str) -> None:
    with pytest.raises(ClipkitError, match=named):
        probe(*[change.get(i, part) for i, part in enumerate(blobs())])  # type: ignore[operator]


def test_mistakes_in_settings() -> None:
    data = blobs()
    for wrong in (0, True, 2.5):
        with pytest.raises(ClipkitError, match="k is"):
            knn(*data, k=wrong)  # type: ignore[arg-type]
    with pytest.raises(ClipkitError, match="temperature is"):
        knn(*data, temperature=0)
    with pytest.raises(ClipkitError, match="all zeros"):
        knn(np.zeros((300, 10)), *data[1:])
    for l2 in ((), (0.0,), (np.nan,)):
        with pytest.raises(ClipkitError, match="l2 is"):
            linear_probe(*data, l2=l2)


# Parts of the labels


def test_subsets_are_nested_by_class_and_by_seed() -> None:
    label = np.repeat([0, 1, 2], [200, 50, 3])
    fractions = (1.0, 0.01, 0.1, 0.07)
    subsets = nested_subsets(label, fractions, 0)
    assert list(subsets) == [0.01, 0.07, 0.1, 1.0]
    counts = {fraction: np.bincount(label[rows]).tolist() for fraction, rows in subsets.items()}
    assert counts == {0.01: [2, 1, 1], 0.07: [14, 4, 1], 0.1: [20, 5, 1], 1.0: [200, 50, 3]}
    for smaller, larger in zip([0.01, 0.07, 0.1], [0.07, 0.1, 1.0], strict=True):
        assert set(subsets[smaller]) < set(subsets[larger])
    assert all((np.diff(rows) > 0).all() for rows in subsets.values()), "ascending, and nothing twice"
    again, other = nested_subsets(label, [0.1], 0)[0.1], nested_subsets(label, [0.1], 1)[0.1]
    assert (again == subsets[0.1]).all() and not (other == again).all()
    for wrong in (0, 1.5, True):
        with pytest.raises(ClipkitError, match="fraction"):
            nested_subsets(label, [wrong], 0)
    with pytest.raises(ClipkitError, match="no fractions"):
        nested_subsets(label, [], 0)


def test_what_is_held_out() -> None:
    label = np.repeat([5, 7, 9], [100, 10, 1])
    kept, held = hold_out(label, 0.2, 0)
    assert sorted([*kept, *held]) == list(range(111))
    assert [int((label[held] == c).sum()) for c in (5, 7, 9)] == [20, 2, 0]
    assert not (hold_out(label, 0.2, 1)[1] == held).all()
