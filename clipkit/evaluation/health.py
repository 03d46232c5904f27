"""Health of a space: how far its embeddings are spread, and whether positives are near each other.

Cheap enough for a batch during training (two eigenvalue problems of the size of the batch or of the space, whichever
is smaller, and N² distances): a few hundred rows say what a hundred thousand say.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import indices

_TINY = 1e-12  # the norm below which a row has no direction
_DEAD = 1e-5  # standard deviation of a coordinate of unit vectors below which it says nothing
_TILE = 2048  # rows whose distances to all others are held at once


@dataclass(frozen=True)
class Space:
    """One side of the space: N embeddings of D dimensions. All figures but `norm` and `zeros` are of unit vectors.

    Attributes:
        n, embed_dim: N and D.
        norm: mean norm of the rows as they were given.
        zeros: rows without a direction (norm below 1e-12).
        cosine: mean cosine of two different rows; 1 where all are the same, about 0 where they are spread.
        std: mean over dimensions of the standard deviation; 1/√D where they are spread, 0 where all are the same
            (Chen & He 2021, Exploring Simple Siamese Representation Learning, figure 2).
        dead: dimensions that hardly change (standard deviation below 1e-5).
        uniformity: log of the mean over pairs of exp(-2 ‖x - y‖²): 0 where all are the same, about -4 where they are
            spread over a sphere of many dimensions (Wang & Isola 2020, Understanding Contrastive Representation
            Learning through Alignment and Uniformity on the Hypersphere, t = 2).
        effective_rank: exp of the entropy of the singular values divided by their sum (Roy & Vetterli 2007, The
            effective rank), from 1 to min(N, D). Of the rows themselves, not of their distances from the mean: a
            single point with a little noise around it has rank 1.
        first_component: share of the variance around the mean in its first principal component; NaN without variance.
    """

    n: int
    embed_dim: int
    norm: float
    zeros: int
    cosine: float
    std: float
    dead: int
    uniformity: float
    effective_rank: float
    first_component: float


@dataclass(frozen=True)
class Health:
    """Both sides of the space and how they lie to each other.

    Attributes:
        images, texts: the sides; `texts` is None if there is only one.
        alignment: mean over positive pairs of ‖x - y‖² (Wang & Isola 2020, α = 2), from 0 to 4; NaN without pairs.
        distance: the same over all pairs of one row of each side: what alignment would be if pairs meant nothing; NaN
            with one side.
        modality_gap: distance between the means of the two sides (Liang et al. 2022, Mind the Gap), from 0 to 2; NaN
            with one side.
    """

    images: Space
    texts: Space | None
    alignment: float
    distance: float
    modality_gap: float

    def metrics(self) -> dict[str, float]:
        """The known figures under flat names such as "image_effective_rank", for a line of metrics.jsonl."""
        flat: dict[str, float] = {}
        for side, space in (("image", self.images), ("text", self.texts)):
            if space is not None:
                flat |= {f"{side}_{name}": value for name, value in asdict(space).items() if name != "embed_dim"}
        flat |= {name: getattr(self, name) for name in ("alignment", "distance", "modality_gap")}
        return {name: value for name, value in flat.items() if not math.isnan(value)}

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON, with the sentences; what is not known is null."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: plain(v) for name, v in value.items()}
            return None if isinstance(value, float) and math.isnan(value) else value

        return {"kind": "health", **plain(asdict(self)), "sentences": self.sentences()}

    def sentences(self, names: tuple[str, str] = ("pictures", "texts")) -> list[str]:
        """What is wrong, a sentence each with its usual cause and what to try, or one sentence that nothing is."""
        from clipkit.evaluation.verdicts import diagnose

        found = diagnose(self, names)
        if found:
            return [verdict.sentence for verdict in found]
        sides = [(names[0], self.images)] + ([(names[1], self.texts)] if self.texts else [])
        ranks = ", ".join(f"{space.effective_rank:.1f} of {space.embed_dim} for {name}" for name, space in sides)
        return [f"no sign of collapse (effective rank {ranks})"]


def measure_health(images_ND: Any, texts_MD: Any = None, image_of_text_M: Any = None) -> Health:
    """Measure the embeddings of a batch or a data set; computed in float64.

    Args:
        images_ND: embeddings of one side, (N, D) of any floating dtype, on any device, normalised or not; N at least 2.
        texts_MD: embeddings of the other side, (M, D): captions, or the second views of the same pictures.
        image_of_text_M: row of ``images_ND`` that each row of ``texts_MD`` is a positive of, int (M,). Default: the row
            of the same number where N = M; otherwise there are no pairs and no alignment.

    Raises:
        ClipkitError: other shapes, or a number that is NaN or infinite.

    Example:
        >>> measure_health(np.eye(4)).images.effective_rank
        4.0
    """
    unit_ND, images = _side("images_ND", images_ND)
    if texts_MD is None:
        return Health(images, None, math.nan, math.nan, math.nan)
    unit_MD, texts = _side("texts_MD", texts_MD)
    if unit_ND.shape[1] != unit_MD.shape[1]:
        raise ClipkitError(
            f"images_ND has {unit_ND.shape[1]} dimensions and texts_MD {unit_MD.shape[1]}: pass embeddings of one space"
        )
    alignment = math.nan
    if image_of_text_M is not None:
        owner_M = indices("image_of_text_M", image_of_text_M, len(unit_MD), len(unit_ND), "pictures")
        alignment = float(((unit_ND[owner_M] - unit_MD) ** 2).sum(1).mean())
    elif len(unit_ND) == len(unit_MD):
        alignment = float(((unit_ND - unit_MD) ** 2).sum(1).mean())
    center_D, other_D = unit_ND.mean(0), unit_MD.mean(0)
    squares = (unit_ND**2).sum() / len(unit_ND) + (unit_MD**2).sum() / len(unit_MD)
    distance = float(squares - 2 * center_D @ other_D)
    return Health(images, texts, alignment, distance, float(np.linalg.norm(center_D - other_D)))


def _side(name: str, values: Any) -> tuple[np.ndarray, Space]:
    """The rows with unit norm in float64, and what is known of them."""
    if hasattr(values, "detach"):  # not as_numpy, which would round float64 to float32
        values = values.detach().cpu().double().numpy()
    rows_ND = np.asarray(values, dtype=np.float64)
    if rows_ND.ndim != 2 or len(rows_ND) < 2 or not rows_ND.shape[1]:
        raise ClipkitError(f"{name} has shape {rows_ND.shape}: pass one embedding a row, at least two rows")
    if not np.isfinite(rows_ND).all():
        row = int(np.flatnonzero(~np.isfinite(rows_ND).all(1))[0])
        raise ClipkitError(f"{name}[{row}] holds NaN or infinity: lower the learning rate, or look at that input")
    norm_N = np.linalg.norm(rows_ND, axis=1)
    unit_ND = rows_ND / np.maximum(norm_N, _TINY)[:, None]
    unit_ND[norm_N < _TINY] = 0
    n, embed_dim = unit_ND.shape
    mean_D = unit_ND.mean(0)
    std_D = unit_ND.std(0)
    variance_K = _spectrum(unit_ND - mean_D)
    # rounding of equal rows is no variance
    first = float(variance_K[-1] / variance_K.sum()) if variance_K.sum() > 1e-20 * n else math.nan
    return unit_ND, Space(
        n=n,
        embed_dim=embed_dim,
        norm=float(norm_N.mean()),
        zeros=int((norm_N < _TINY).sum()),
        cosine=float((n * mean_D @ mean_D - (unit_ND**2).sum() / n) / (n - 1)),
        std=float(std_D.mean()),
        dead=int((std_D < _DEAD).sum()),
        uniformity=_uniformity(unit_ND),
        effective_rank=_effective_rank(unit_ND),
        first_component=first,
    )


def _spectrum(rows_ND: np.ndarray) -> np.ndarray:
    """Squared singular values, ascending; those that are rounding of the largest are 0."""
    gram = rows_ND.T @ rows_ND if len(rows_ND) > rows_ND.shape[1] else rows_ND @ rows_ND.T
    squares = np.linalg.eigvalsh(gram)
    return np.where(squares > len(squares) * np.finfo(np.float64).eps * squares[-1], squares, 0)


def _effective_rank(rows_ND: np.ndarray) -> float:
    values = np.sqrt(_spectrum(rows_ND))
    if not values.sum():
        return 0.0
    shares = values[values > 0] / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _uniformity(unit_ND: np.ndarray) -> float:
    """Over the N(N-1)/2 pairs of different rows; a row is no pair with itself."""
    total = 0.0
    squares_N = (unit_ND**2).sum(1)
    for start in range(0, len(unit_ND), _TILE):
        part = slice(start, start + _TILE)
        distance = squares_N[part, None] + squares_N[None, :] - 2 * unit_ND[part] @ unit_ND.T
        kernel = np.exp(-2 * np.maximum(distance, 0))
        each = np.arange(len(kernel))
        kernel[each, start + each] = 0
        total += float(kernel.sum())
    return math.log(total / (len(unit_ND) * (len(unit_ND) - 1)))
