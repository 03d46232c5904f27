"""The map's layouts, samples, groups and neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA

from clipkit.errors import ClipkitError
from clipkit.inference import Aligner, Index
from clipkit.inference.items import Item
from demos import space
from demos.space import REST, Space


def blobs(n: int, dimensions: int = 32, groups: int = 3) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Unit vectors around ``groups`` directions, of very different numbers, and which is which."""
    draw = np.random.default_rng(0)
    of = np.sort(draw.choice(groups, n, p=np.array([6, 3, 1]) / 10))
    x = np.eye(dimensions)[of * 3] + 0.05 * draw.normal(size=(n, dimensions))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), of


def an_index(model: Aligner, n: int, items: list[Item] | None = None) -> Index:
    x, _ = blobs(n, model.embed_dim)
    return Index(model, x, items or [Item("x", f"{i}.png", (f"picture {i}",)) for i in range(n)])


def test_pca_is_scikit_learns_up_to_its_signs() -> None:
    x, _ = blobs(200)
    mine, theirs = space.pca(x), PCA(2).fit(x)
    expected = theirs.transform(x)
    low, high = expected.min(0), expected.max(0)
    expected = (expected - low) / (high - low)
    for axis in (0, 1):
        near = [np.abs(mine.points[:, axis] - e).max() for e in (expected[:, axis], 1 - expected[:, axis])]
        assert min(near) < 1e-4
    assert f"{theirs.explained_variance_ratio_.sum():.0%}" in mine.about
    turned = space.pca(-x).points
    assert turned.min() == 0 and turned.max() == 1


@pytest.mark.parametrize("x", [np.ones((1, 8)), np.ones((5, 8)), np.ones((3, 1))])
def test_pictures_that_are_all_alike_are_in_the_middle(x: Any) -> None:
    np.testing.assert_array_equal(space.pca(x.astype(np.float32)).points, np.full((len(x), 2), 0.5))


@pytest.mark.slow
def test_umap_puts_alike_together_and_is_the_same_each_time() -> None:
    pytest.importorskip("umap", reason='no umap-learn: pip install "clipkit[map]"')
    x, of = blobs(120)
    points = space.umap(x).points
    assert points.shape == (120, 2) and points.min() == 0 and points.max() == 1
    distance = np.linalg.norm(points[:, None] - points[None], axis=2) + 9 * np.eye(120)
    assert (of[distance.argmin(axis=1)] == of).all()
    np.testing.assert_array_equal(points, space.umap(x).points)


def test_umap_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = blobs(9)
    if space.has_umap():
        with pytest.raises(ClipkitError, match="at least 10 pictures, here are 9: choose PCA"):
            space.umap(x)
    monkeypatch.setattr(space, "has_umap", lambda: False)
    with pytest.raises(ClipkitError, match=r'pip install "clipkit\[map\]"'):
        space.umap(x)


def test_clusters_are_found_largest_first() -> None:
    x, of = blobs(300)
    shuffled = np.random.default_rng(1).permutation(300)
    found, middles = space.cluster(x[shuffled], 3)
    np.testing.assert_array_equal(found, of[shuffled])
    assert middles.shape == (3, 32)
    assert space.cluster(np.repeat(np.eye(2, dtype=np.float32), 4, axis=0), 6)[1].shape == (2, 2)


def test_a_sample_is_sorted_and_the_same_each_time() -> None:
    np.testing.assert_array_equal(space.sample(7, 10), np.arange(7))
    rows = space.sample(10_000, 500)
    assert len(set(rows.tolist())) == 500 and (np.diff(rows) > 0).all() and rows.max() > 9_000
    np.testing.assert_array_equal(rows, space.sample(10_000, 500))


def test_a_space_of_a_sample_keeps_rows_and_points_together(model: Aligner) -> None:
    index = an_index(model, 300)
    shown = Space(index, most=40)
    assert shown.plane("PCA").points.shape == (40, 2)
    point = 17
    row = int(shown.rows[point])
    assert shown.name(point) == f"picture {row}"
    (best, score), *_ = shown.nearest(index.embeddings[row], 5)
    assert best == point and score == pytest.approx(1, abs=1e-5)
    scores = [score for _, score in shown.nearest(index.embeddings[0], 40)]
    assert len(scores) == 40 and scores == sorted(scores, reverse=True)
    with pytest.raises(ClipkitError, match="PCA or UMAP"):
        shown.plane("t-SNE")
    with pytest.raises(ClipkitError, match="from 2 to 10"):
        shown.clusters(1)


def test_clusters_are_named_after_a_picture_of_theirs(model: Aligner) -> None:
    shown = Space(an_index(model, 60))
    groups = shown.clusters(3)
    for number, name in enumerate(groups.names):
        picture = int(name.split("picture ")[1].split(" ")[0])
        assert groups.of[picture] == number


def test_labels_come_from_the_meta_or_the_folder_and_the_rare_ones_are_others(model: Aligner) -> None:
    meta = [Item("x", f"{i}", meta={"label": f"l{min(i, 11)}"}) for i in range(30)]
    groups = Space(an_index(model, 30, meta)).labels()
    assert groups.names[0] == "l11" and groups.names[-1] == REST and len(groups.names) == space.MAX_GROUPS
    assert (groups.of == 0).sum() == 19 and (groups.of == len(groups.names) - 1).sum() == 3
    folders = [Item("x", f"{'ab'[i % 2]}/deep/{i}.png") for i in range(10)]
    assert sorted(Space(an_index(model, 10, folders)).labels().names) == ["a", "b"]
    assert Space(an_index(model, 10, folders)).has_labels() and not Space(an_index(model, 10)).has_labels()
