"""Image–text retrieval: recall@k with any number of captions a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import as_numpy, image_indices
from clipkit.evaluation.intervals import Interval, bootstrap_shares, check_draws
from clipkit.evaluation.ranks import retrieval_ranks


@dataclass(frozen=True)
class RetrievalReport:
    """Recall@k in both directions with 95 % intervals, the chance of a random ranking, and the protocol."""

    image_to_text: dict[int, Interval]
    text_to_image: dict[int, Interval]
    chance_image_to_text: dict[int, float]
    chance_text_to_image: dict[int, float]
    median_rank_image_to_text: float
    median_rank_text_to_image: float
    n_images: int
    n_texts: int
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON, the ks as strings."""
        return {
            "kind": "retrieval",
            "image_to_text": {str(k): interval.to_dict() for k, interval in self.image_to_text.items()},
            "text_to_image": {str(k): interval.to_dict() for k, interval in self.text_to_image.items()},
            "chance_image_to_text": {str(k): chance for k, chance in self.chance_image_to_text.items()},
            "chance_text_to_image": {str(k): chance for k, chance in self.chance_text_to_image.items()},
            "median_rank_image_to_text": self.median_rank_image_to_text,
            "median_rank_text_to_image": self.median_rank_text_to_image,
            "n_images": self.n_images,
            "n_texts": self.n_texts,
            "protocol": self.protocol,
        }

    def metrics(self) -> dict[str, float]:
        """The figures alone under flat names such as "image_to_text@1", for a line of metrics.jsonl."""
        flat = {f"image_to_text@{k}": interval.value for k, interval in self.image_to_text.items()}
        flat |= {f"text_to_image@{k}": interval.value for k, interval in self.text_to_image.items()}
        return flat

    def __str__(self) -> str:
        def row(recalls: dict[int, Interval], chances: dict[int, float]) -> str:
            return ", ".join(f"@{k} {recalls[k]} (chance {_percent(chances[k])})" for k in recalls)

        return (
            f"image→text recall {row(self.image_to_text, self.chance_image_to_text)}; "
            f"text→image recall {row(self.text_to_image, self.chance_text_to_image)}; "
            f"{self.n_images:,} pictures, {self.n_texts:,} captions"
        )


def retrieval(
    image_ND: Any,
    text_MD: Any,
    image_of_text_M: Any,
    ks: Sequence[int] = (1, 5, 10),
    bootstrap: int = 1000,
    seed: int = 0,
    group_N: Any = None,
) -> RetrievalReport:
    """Recall@k of captions by picture and of pictures by caption.

    image_ND, text_MD: embeddings of N pictures and M captions, unit-norm rows, compared in float32.
    image_of_text_M: which picture each caption belongs to, int (M,); every picture has at least one.
    ks: cut-offs. A k above the number of candidates is allowed and always a hit.
    bootstrap: draws of the interval, 0 for none. Pictures are drawn with all their captions.
    group_N: pictures that belong together (variants of one drawing, frames of one film), any labels, (N,);
        whole groups are then drawn instead of pictures.

    Image→text is a hit when any of the picture's captions is among the k best of all captions; text→image
    when the caption's picture is among the k best pictures. Ties count against the model. A one-to-one
    diagonal would score a perfect model 0.2 at five captions a picture.

    Raises ClipkitError for arrays that are not finite, unit-norm and of matching shapes, for a picture
    without captions, and for a k below 1.

    Example:
        >>> image = np.eye(3, dtype=np.float32)
        >>> report = retrieval(image, image[[0, 0, 1, 2]], [0, 0, 1, 2], ks=(1,))
        >>> report.image_to_text[1].value
        1.0
    """
    ks = _check_ks(ks)
    bootstrap = check_draws(bootstrap)
    ranks = retrieval_ranks(image_ND, text_MD, image_of_text_M)
    n_images, n_texts = len(ranks.image_N), len(ranks.text_M)
    owner_M = image_indices(image_of_text_M, n_texts, n_images)
    captions_N = np.bincount(owner_M, minlength=n_images)
    unit_N, units = _units(group_N, n_images)

    def recalls(rank: np.ndarray, unit: np.ndarray) -> dict[int, Interval]:
        hits_UK = np.stack([np.bincount(unit, weights=rank <= k, minlength=units) for k in ks], axis=1)
        intervals = bootstrap_shares(hits_UK, np.bincount(unit, minlength=units), bootstrap, seed)
        return dict(zip(ks, intervals, strict=True))

    return RetrievalReport(
        image_to_text=recalls(ranks.image_N, unit_N),
        text_to_image=recalls(ranks.text_M, unit_N[owner_M]),
        chance_image_to_text={k: _chance_any(captions_N, n_texts, k) for k in ks},
        chance_text_to_image={k: min(k / n_images, 1.0) for k in ks},
        median_rank_image_to_text=float(np.median(ranks.image_N)),
        median_rank_text_to_image=float(np.median(ranks.text_M)),
        n_images=n_images,
        n_texts=n_texts,
        protocol=_protocol(captions_N, n_texts, bootstrap, seed, None if group_N is None else units),
    )


def _check_ks(ks: Sequence[int]) -> list[int]:
    for k in ks:
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise ClipkitError(f"ks contains {k!r}: recall@k needs whole numbers from 1, such as 1, 5, 10")
    if not len(ks):
        raise ClipkitError("ks is empty: recall@k needs at least one k, such as 1")
    return sorted({int(k) for k in ks})


def _units(group_N: Any, n_images: int) -> tuple[np.ndarray, int]:
    """The bootstrap unit of each picture, int (N,), and how many units there are."""
    if group_N is None:
        return np.arange(n_images), n_images
    groups = as_numpy(group_N)
    if groups.shape != (n_images,):
        raise ClipkitError(f"group_N has shape {groups.shape}: it needs ({n_images},), one group a picture")
    names, unit_N = np.unique(groups, return_inverse=True)
    return unit_N, len(names)


def _chance_any(captions_N: np.ndarray, n_texts: int, k: int) -> float:
    """The expected recall@k of a random ranking of the captions, exactly.

    A picture with c captions among M misses with probability C(M - c, k) / C(M, k), which is the product of
    (M - c - t) / (M - t) over t < k.
    """
    counts, pictures = np.unique(captions_N, return_counts=True)
    t = np.arange(min(k, n_texts))
    miss = np.prod(np.clip(n_texts - counts[:, None] - t, 0, None) / (n_texts - t), axis=1)
    return float(np.average(1 - miss, weights=pictures))


def _protocol(captions_N: np.ndarray, n_texts: int, bootstrap: int, seed: int, groups: int | None) -> str:
    fewest, most = int(captions_N.min()), int(captions_N.max())
    each = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    text = (
        f"{len(captions_N):,} pictures and {n_texts:,} captions ({each} a picture) in one pool; image→text "
        "is a hit when any of the picture's captions is in the top k, text→image when the caption's picture "
        "is; ties count against the model"
    )
    if not bootstrap:
        return text
    unit = "pictures" if groups is None else f"{groups:,} groups of pictures"
    return f"{text}; 95 % percentile bootstrap over {unit} with all their captions, {bootstrap:,} draws, seed {seed}"


def _percent(share: float) -> str:
    """A share in percent with enough digits to see a small chance."""
    return f"{100 * share:.1f} %" if share >= 0.01 or share == 0 else f"{100 * share:.2g} %"
