"""What a model finds for single pictures: the figures of retrieval, made visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.errors import check_count
from clipkit.evaluation.arrays import as_numpy, indices, unit_rows
from clipkit.evaluation.ranks import Ranks, retrieval_ranks


@dataclass(frozen=True)
class PictureMatch:
    """One picture: the rank of its captions, and what was found for it.

    picture: its row in image_ND.
    rank: the rank of its best caption, from 1.
    caption: that caption's row in text_MD, with its cosine `score`.
    retrieved: the top captions of all as (row in text_MD, cosine, whether it is the picture's own).
    """

    picture: int
    rank: int
    caption: int
    score: float
    retrieved: tuple[tuple[int, float, bool], ...]


def best_pairs(
    image_ND: Any,
    text_MD: Any,
    image_of_text_M: Any,
    pictures: Sequence[int] | None = None,
    k: int = 3,
    ranks: Ranks | None = None,
) -> list[PictureMatch]:
    """For each of `pictures` (default: all), its k best captions among all M and the rank of its own.

    image_ND, text_MD, image_of_text_M: as for `retrieval`. ranks: of these arrays, if they are known already.
    """
    check_count("k", k)
    ranks = ranks or retrieval_ranks(image_ND, text_MD, image_of_text_M)
    image_ND, text_MD = unit_rows("image_ND", image_ND), unit_rows("text_MD", text_MD)
    owner_M = as_numpy(image_of_text_M)
    chosen = np.arange(len(image_ND)) if pictures is None else np.asarray(pictures, dtype=np.int64)
    chosen = indices("pictures", chosen, len(chosen), len(image_ND), "pictures")

    k = min(k, len(text_MD))
    matches = []
    rows = max(1, 4_000_000 // len(text_MD))
    for start in range(0, len(chosen), rows):
        part = chosen[start : start + rows]
        score_PM = image_ND[part] @ text_MD.T
        top_PK = np.argpartition(-score_PM, k - 1, axis=1)[:, :k]
        for picture, top, score_M in zip(part.tolist(), top_PK, score_PM, strict=True):
            own = owner_M[top] == picture
            order = np.lexsort((own, -score_M[top]))  # a tie counts against the model here as well
            caption = int(ranks.best_text_N[picture])
            matches.append(
                PictureMatch(
                    picture=picture,
                    rank=int(ranks.image_N[picture]),
                    caption=caption,
                    score=float(ranks.own_score_M[caption]),
                    retrieved=tuple((int(top[i]), float(score_M[top[i]]), bool(own[i])) for i in order),
                )
            )
    return matches


def best_and_worst(
    image_ND: Any, text_MD: Any, image_of_text_M: Any, n: int = 6, k: int = 3
) -> tuple[list[PictureMatch], list[PictureMatch]]:
    """The n pictures whose captions rank first and score highest, and the n that rank last, worst first.

    No picture is in both lists, so of few pictures each list shows at most half.
    """
    ranks = retrieval_ranks(image_ND, text_MD, image_of_text_M)
    score_N = ranks.own_score_M[ranks.best_text_N]
    order_N = np.lexsort((-score_N, ranks.image_N))
    n = min(n, (len(order_N) + 1) // 2)
    chosen = [*order_N[:n].tolist(), *order_N[n:][::-1][:n].tolist()]
    matches = best_pairs(image_ND, text_MD, image_of_text_M, chosen, k, ranks)
    return matches[:n], matches[n:]
