"""Zero-shot classification: pictures against one vector a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import as_numpy, indices, same_width, unit_rows
from clipkit.evaluation.intervals import Interval, bootstrap_class_means, bootstrap_shares, check_draws
from clipkit.evaluation.ranks import TIE
from clipkit.evaluation.templates import check_class_names


@dataclass(frozen=True)
class ZeroShotReport:
    """Accuracies with 95 % intervals beside chance and the majority class, and where the errors went.

    top5 is None with five classes or fewer, where it would say nothing.
    per_class and mean_per_class cover the classes that have samples; class_counts is their number (C,).
    confusion_CC: counts, row the true class, column the predicted one, int64.
    """

    top1: Interval
    top5: Interval | None
    mean_per_class: Interval
    chance: float
    majority: float
    per_class: dict[str, Interval]
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    confusion_CC: np.ndarray
    n_images: int
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "kind": "zero_shot",
            "top1": self.top1.to_dict(),
            "top5": None if self.top5 is None else self.top5.to_dict(),
            "mean_per_class": self.mean_per_class.to_dict(),
            "chance": self.chance,
            "majority": self.majority,
            "per_class": {name: interval.to_dict() for name, interval in self.per_class.items()},
            "class_names": list(self.class_names),
            "class_counts": list(self.class_counts),
            "confusion": self.confusion_CC.tolist(),
            "n_images": self.n_images,
            "protocol": self.protocol,
        }

    def metrics(self) -> dict[str, float]:
        """The figures alone under flat names, for a line of metrics.jsonl."""
        flat = {"zero_shot_top1": self.top1.value, "zero_shot_mean_per_class": self.mean_per_class.value}
        return flat if self.top5 is None else {**flat, "zero_shot_top5": self.top5.value}

    def __str__(self) -> str:
        top5 = "" if self.top5 is None else f", top-5 {self.top5}"
        return (
            f"zero-shot top-1 {self.top1}{top5}, mean per class {self.mean_per_class}; "
            f"chance {100 * self.chance:.1f} %, majority class {100 * self.majority:.1f} %; "
            f"{self.n_images:,} pictures, {len(self.class_names):,} classes"
        )


def zero_shot(
    image_ND: Any,
    class_CD: Any,
    labels_N: Any,
    class_names: Sequence[str],
    bootstrap: int = 1000,
    seed: int = 0,
) -> ZeroShotReport:
    """Classify N pictures by the nearest of C class vectors.

    image_ND: unit-norm embeddings of the pictures; class_CD: unit-norm, from `classifier_weights`.
    labels_N: the true class of each picture, as an index into class_names or as the name itself.
    bootstrap: draws of the intervals, 0 for none.

    A picture counts as right only if its own class beats every other strictly: two classes with one vector
    cannot both be right. Raises ClipkitError for arrays that are not finite, unit-norm and of matching
    shapes, and for a label that is not a class.
    """
    names = check_class_names(class_names)
    image_ND, class_CD = unit_rows("image_ND", image_ND), unit_rows("class_CD", class_CD)
    same_width("image_ND", image_ND, "class_CD", class_CD)
    if len(class_CD) != len(names):
        raise ClipkitError(f"class_CD has {len(class_CD)} rows for {len(names)} class names: pass one a class")
    label_N = _labels(labels_N, len(image_ND), names)
    bootstrap = check_draws(bootstrap)

    rank_N, predicted_N = _classify(image_ND, class_CD, label_N)
    n_classes, ones_N = len(names), np.ones(len(label_N))
    top1, top5 = bootstrap_shares(np.stack([rank_N <= 1, rank_N <= 5], axis=1), ones_N, bootstrap, seed)
    counts_C = np.bincount(label_N, minlength=n_classes)
    seen = np.flatnonzero(counts_C)
    hits_C = np.bincount(label_N[rank_N == 1], minlength=n_classes)
    mean, per_class = bootstrap_class_means(hits_C[seen], counts_C[seen], bootstrap, seed)
    cells = np.bincount(label_N * n_classes + predicted_N, minlength=n_classes**2)
    return ZeroShotReport(
        top1=top1,
        top5=top5 if n_classes > 5 else None,
        mean_per_class=mean,
        chance=1 / n_classes,
        majority=float(counts_C.max() / len(label_N)),
        per_class=dict(zip([names[c] for c in seen], per_class, strict=True)),
        class_names=tuple(names),
        class_counts=tuple(counts_C.tolist()),
        confusion_CC=cells.reshape(n_classes, n_classes),
        n_images=len(label_N),
        protocol=_protocol(len(label_N), n_classes, len(seen), bootstrap, seed),
    )


def _labels(labels_N: Any, length: int, names: list[str]) -> np.ndarray:
    """Labels as class indices, int64 (N,)."""
    labels = as_numpy(labels_N)
    if labels.dtype.kind not in "USO":
        return indices("labels_N", labels, length, len(names), "classes")
    if labels.shape != (length,):
        raise ClipkitError(f"labels_N has shape {labels.shape}: it needs ({length},), one label a picture")
    index = {name: c for c, name in enumerate(names)}
    for n, label in enumerate(labels.tolist()):
        if label not in index:
            some = ", ".join(map(repr, names[:5])) + (", …" if len(names) > 5 else "")
            raise ClipkitError(f"labels_N[{n}] is {label!r}, which is none of the {len(names)} classes ({some})")
    return np.array([index[label] for label in labels.tolist()], dtype=np.int64)


def _classify(image_ND: np.ndarray, class_CD: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of the true class (ties against it) and predicted class, both int64 (N,).

    In float64, because C is small and equal vectors must tie. On a tie the prediction is the other class, so
    that the confusion's diagonal is exactly the hits.
    """
    classes_DC = class_CD.astype(np.float64).T
    rank_N = np.empty(len(label_N), dtype=np.int64)
    predicted_N = label_N.copy()
    rows = max(1, 4_000_000 // len(class_CD))
    for start in range(0, len(label_N), rows):
        part = slice(start, start + rows)
        score_nC = image_ND[part].astype(np.float64) @ classes_DC
        each, label_n = np.arange(len(score_nC)), label_N[part]
        own_n = score_nC[each, label_n].copy()
        score_nC[each, label_n] = -np.inf
        rank_N[part] = 1 + np.count_nonzero(score_nC >= own_n[:, None] - TIE, axis=1)
        wrong = rank_N[part] > 1
        predicted_N[part][wrong] = score_nC[wrong].argmax(1)
    return rank_N, predicted_N


def _protocol(n_images: int, n_classes: int, n_seen: int, bootstrap: int, seed: int) -> str:
    text = (
        f"{n_images:,} pictures, {n_classes:,} classes ({n_seen:,} of them with pictures); nearest class "
        "vector, right only if no other class scores as high"
    )
    if not bootstrap:
        return text
    return (
        f"{text}; 95 % percentile bootstrap over pictures, within each class for the mean per class, "
        f"{bootstrap:,} draws, seed {seed}"
    )
