"""Exact ranks of pictures and captions among each other, in tiles of the score matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.evaluation.arrays import image_indices, same_width, unit_rows

# Two cosines closer than this in float64 are equal: rounding of a sum of a few thousand products.
TIE = 1e-12
TILE_IMAGES, TILE_TEXTS = 1024, 8192


@dataclass(frozen=True)
class Ranks:
    """Ranks from 1 (best), int64, with ties counted against the model.

    image_N: 1 + the number of other pictures' captions that score at least as high with the picture as its
        own best caption does. A picture's own captions never count against it.
    text_M: 1 + the number of other pictures that score at least as high with the caption as its own picture.
    own_score_M: cosine of each caption with its own picture, float64.
    best_text_N: for each picture, its own caption of the highest score.
    """

    image_N: np.ndarray
    text_M: np.ndarray
    own_score_M: np.ndarray
    best_text_N: np.ndarray


def retrieval_ranks(
    image_ND: Any,
    text_MD: Any,
    image_of_text_M: Any,
    tile: tuple[int, int] = (TILE_IMAGES, TILE_TEXTS),
) -> Ranks:
    """Rank every picture's captions and every caption's picture.

    image_ND, text_MD: unit-norm embeddings; image_of_text_M: the picture of each caption, (M,) int.
    tile: pictures × captions scored at once; it changes memory (about ten bytes a cell), never the ranks.

    The rank of a pair needs only its own score and how many others reach it, so no score outlives its tile.
    Tiles are float32, and the last bits of a float32 product depend on where in the tile it is computed:
    equal embeddings may get unequal scores, and a collapsed model would then be ranked by rounding. So cells
    within the rounding bound of the score they are compared with are computed again in float64.
    Raises ClipkitError for inputs that are not unit-norm, finite and of one width, or when a picture has no
    caption.
    """
    image_ND = unit_rows("image_ND", image_ND)
    text_MD = unit_rows("text_MD", text_MD)
    same_width("image_ND", image_ND, "text_MD", text_MD)
    owner_M = image_indices(image_of_text_M, len(text_MD), len(image_ND))

    own_M = _paired_scores(image_ND, text_MD, owner_M, np.arange(len(text_MD)))
    # captions by picture, each picture's best first
    order_M = np.lexsort((-own_M, owner_M))
    first_N = np.searchsorted(owner_M[order_M], np.arange(len(image_ND)))
    best_text_N = order_M[first_N]
    best_N = own_M[best_text_N]

    rank_N = np.ones(len(image_ND), dtype=np.int64)
    rank_M = np.ones(len(text_MD), dtype=np.int64)
    for rows in _slices(len(image_ND), tile[0]):
        for columns in _slices(len(text_MD), tile[1]):
            image_rD, text_cD = image_ND[rows], text_MD[columns]
            score_rc = image_rD @ text_cD.T
            mine = np.flatnonzero((owner_M[columns] >= rows.start) & (owner_M[columns] < rows.stop))
            score_rc[owner_M[columns][mine] - rows.start, mine] = -np.inf
            rank_N[rows] += _reaching(score_rc, best_N[rows][:, None], image_rD, text_cD)
            rank_M[columns] += _reaching(score_rc.T, own_M[columns][:, None], text_cD, image_rD)
    return Ranks(rank_N, rank_M, own_M, best_text_N)


def _reaching(score_qk: np.ndarray, threshold_q1: np.ndarray, query_qD: np.ndarray, key_kD: np.ndarray) -> np.ndarray:
    """For each query, the number of keys whose exact score is at least the query's threshold (or ties it).

    score_qk: float32 scores of the tile, -inf where a cell does not count.
    """
    # the rounding bound of a float32 dot product of unit vectors in any order of summation (Higham 2002,
    # Accuracy and Stability of Numerical Algorithms, eq. 3.5), and a little for the norms and the threshold
    margin = (query_qD.shape[1] + 8) * 2.0**-24
    sure_qk = score_qk > (threshold_q1 + margin).astype(np.float32)
    near_qk = (score_qk >= (threshold_q1 - margin).astype(np.float32)) ^ sure_qk
    counts_q = np.count_nonzero(sure_qk, axis=1)
    q, k = np.nonzero(near_qk)
    if q.size > score_qk.size // 64:  # a collapsed space: the whole tile is cheaper than its cells
        exact = (query_qD.astype(np.float64) @ key_kD.astype(np.float64).T)[q, k]
    else:
        exact = _paired_scores(query_qD, key_kD, q, k)
    reached = q[exact >= threshold_q1[q, 0] - TIE]
    return counts_q + np.bincount(reached, minlength=len(counts_q))


def _paired_scores(left_ND: np.ndarray, right_MD: np.ndarray, n: np.ndarray, m: np.ndarray) -> np.ndarray:
    """left[n_i] · right[m_i] in float64 for paired indices, a few thousand pairs at a time."""
    scores = np.empty(len(n), dtype=np.float64)
    for part in _slices(len(n), 4096):
        left = left_ND[n[part]].astype(np.float64)
        scores[part] = np.einsum("pd,pd->p", left, right_MD[m[part]].astype(np.float64))
    return scores


def _slices(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]
