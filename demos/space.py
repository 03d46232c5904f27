"""Where the pictures of an index lie in two dimensions, and what lies together. Nothing here knows of a page."""

from __future__ import annotations

import importlib.util
import threading
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.inference import Index
from clipkit.inference.items import Item

MAX_POINTS = 2_000  # a page with more is slow, and no eye tells them apart
MAX_GROUPS = 10  # colours that can be told apart
METHODS = ("PCA", "UMAP")
REST = "others"
_UMAP_LEAST = 10  # pictures
_SEED = 0

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Plane:
    """``points`` float32 (n, 2) from 0 to 1, y upwards; ``about`` says what the axes are."""

    points: Array
    about: str


@dataclass(frozen=True)
class Groups:
    """``names`` of the groups, and of each point the number of its group, int64 (n,)."""

    names: list[str]
    of: NDArray[np.int64]


class Space:
    """The pictures of an index, laid out once each way; above ``most`` of them, a sample that is always the same.

    Args:
        index: whose pictures.
        most: points of a map.

    Attributes:
        rows: int64 (n,), the rows of the index that are shown, in order.
    """

    def __init__(self, index: Index, most: int = MAX_POINTS) -> None:
        self.index = index
        self.rows = sample(len(index), most)
        self._planes: dict[str, Plane] = {}
        self._lock = threading.Lock()  # two users who ask at once do not both wait for a layout of their own

    @cached_property
    def embeddings(self) -> Array:
        """float32 (n, D) of what is shown."""
        return np.asarray(self.index.embeddings[self.rows], dtype=np.float32)

    @cached_property
    def items(self) -> list[Item]:
        """What is shown; read once, because rows far apart in a large index each cost a reading of their own."""
        return [self.index.items[row] for row in self.rows.tolist()]

    def plane(self, method: str) -> Plane:
        """The layout by one of ``METHODS``.

        Raises:
            ClipkitError: another word, umap-learn that is not installed, or too few pictures for it.
        """
        if method not in METHODS:
            raise ClipkitError(f"method {method!r}: choose {' or '.join(METHODS)}")
        with self._lock:
            if method not in self._planes:
                self._planes[method] = pca(self.embeddings) if method == "PCA" else umap(self.embeddings)
            return self._planes[method]

    def has_labels(self) -> bool:
        """Whether the pictures have labels, or lie in folders of their own."""
        return len(set(self._labels())) > 1

    def labels(self) -> Groups:
        """By the pictures' labels, the commonest first; beyond ``MAX_GROUPS`` they are ``others``."""
        labels = self._labels()
        names = [name for name, _ in Counter(labels).most_common()]
        if len(names) > MAX_GROUPS:
            names = [*names[: MAX_GROUPS - 1], REST]
        place = {name: i for i, name in enumerate(names)}
        return Groups(names, np.array([place.get(label, len(names) - 1) for label in labels], dtype=np.int64))

    def clusters(self, count: int) -> Groups:
        """By ``count`` clusters, the largest first, each named after the picture that is nearest to its middle.

        Raises:
            ClipkitError: fewer than two, or more than there are colours.
        """
        if not 2 <= count <= MAX_GROUPS:
            raise ClipkitError(f"{count} clusters: give a number from 2 to {MAX_GROUPS}")
        of, middles = cluster(self.embeddings, count)
        names = []
        for number, middle in enumerate(middles):
            members = np.flatnonzero(of == number)
            nearest = members[int(np.argmax(self.embeddings[members] @ middle))]
            names.append(f"{number + 1}: {self.name(int(nearest))} …")
        return Groups(names, of)

    def nearest(self, vector: Array, k: int) -> list[tuple[int, float]]:
        """The k points whose pictures are nearest to an embedding (D,): (point, cosine similarity), best first."""
        scores = self.embeddings @ vector
        return [(int(i), float(scores[i])) for i in np.argsort(-scores, kind="stable")[:k]]

    def name(self, point: int) -> str:
        """Caption or key of a point's picture."""
        item = self.items[point]
        return item.caption or item.key

    def _labels(self) -> list[str]:
        found = []
        for item in self.items:
            folder = PurePath(item.key).parent
            found.append(str(item.meta.get("label") or (folder.parts[0] if folder.parts else "no label")))
        return found


def has_umap() -> bool:
    """Whether umap-learn is installed."""
    return importlib.util.find_spec("umap") is not None


def sample(count: int, most: int) -> NDArray[np.int64]:
    """int64 (min(count, most),), sorted: which of ``count`` rows are shown; always the same ones."""
    if count <= most:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.default_rng(_SEED).choice(count, size=most, replace=False)
    return np.sort(chosen).astype(np.int64)


def pca(x_ND: Array) -> Plane:
    """The two directions of largest variance, each pointing to where its farthest picture lies."""
    centred = x_ND.astype(np.float64) - x_ND.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred)  # (D, D) is small, whatever N is
    points = centred @ vectors[:, ::-1][:, :2]
    if points.shape[1] < 2:
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
    farthest = points[np.abs(points).argmax(axis=0), [0, 1]]  # eigenvectors have no sign of their own
    points = points * np.where(farthest < 0, -1, 1)
    total = max(float(values.sum()), 1e-12)
    share = float(values[::-1][:2].sum()) / total
    return Plane(_fill(points), f"PCA: the two directions of largest variance, {share:.0%} of all.")


def umap(x_ND: Array) -> Plane:
    """UMAP (McInnes et al. 2018) on cosine distances: who is near whom is kept, distances between groups are not.

    Raises:
        ClipkitError: umap-learn is not installed, or there are too few pictures.
    """
    if not has_umap():
        raise ClipkitError('UMAP needs umap-learn: pip install "clipkit[map]", or choose PCA')
    if len(x_ND) < _UMAP_LEAST:
        raise ClipkitError(f"UMAP needs at least {_UMAP_LEAST} pictures, here are {len(x_ND)}: choose PCA")
    from umap import UMAP

    neighbours = min(15, len(x_ND) - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed costs it its threads
        layout = UMAP(n_neighbors=neighbours, metric="cosine", random_state=_SEED, n_jobs=1).fit_transform(x_ND)
    about = f"UMAP: {neighbours} neighbours, cosine distance; near is alike, far says little."
    return Plane(_fill(np.asarray(layout, dtype=np.float64)), about)


def cluster(x_ND: Array, count: int) -> tuple[NDArray[np.int64], Array]:
    """k-means, always the same: cluster of each row, int64 (N,), the largest cluster is 0, and middles (count, D).

    There are fewer clusters where there are fewer different rows.
    """
    from sklearn.cluster import KMeans

    count = min(count, len(np.unique(x_ND, axis=0)))
    found = KMeans(count, n_init=4, random_state=_SEED).fit(x_ND)
    order = np.argsort(-np.bincount(found.labels_, minlength=count), kind="stable")
    return np.argsort(order)[found.labels_].astype(np.int64), found.cluster_centers_[order].astype(np.float32)


def _fill(points: NDArray[np.float64]) -> Array:
    """Each axis from 0 to 1; an axis on which all are equal is in the middle."""
    low, high = points.min(axis=0), points.max(axis=0)
    width = high - low
    flat = width < 1e-9
    return np.where(flat, 0.5, (points - low) / np.where(flat, 1, width)).astype(np.float32)
