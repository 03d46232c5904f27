"""Tables on which the contract has to hold: features, ids, and ways to cut them in tiles."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clipkit.objectives import Comparison, Tiling

# rows and columns that divide nothing; no tile kept, some of them, all of them
TILINGS = {
    "recomputed": Tiling(rows=7, columns=5, keep_bytes=0),
    "partly kept": Tiling(rows=7, columns=5, keep_bytes=1000),
    "kept": Tiling(rows=5, columns=7, keep_bytes=1 << 30),
    "one tile": Tiling(rows=512, columns=512, keep_bytes=0),
    "dense": None,
}
FEATURES = ("random", "saturated", "orthonormal", "duplicates", "anti-aligned", "far from all keys")
IDS = ("pairs", "captions", "labels", "lonely", "all the same")


def ids(kind: str, n: int) -> tuple[Tensor, Tensor]:
    """Ids of n queries and of about as many keys."""
    generator = torch.Generator().manual_seed(n)
    every = torch.arange(n)
    if kind == "pairs":
        return every, every
    if kind == "captions":  # 0 to 3 of each picture, shuffled
        texts = every.repeat_interleave((every + 1) % 4)
        return every, texts[torch.randperm(len(texts), generator=generator)]
    if kind == "labels":  # on both sides, most of them several times
        several = max(n // 3, 1)
        return tuple(torch.randint(several, (m,), generator=generator) for m in (n, n + 2))  # type: ignore[return-value]
    if kind == "lonely":  # two of three rows and columns have no positive
        return torch.where(every % 3 == 0, every, every + 10 * n), torch.where(every % 3 == 0, every, every + 30 * n)
    return torch.full((n,), 4), torch.full((n + 1,), 4)


def features(kind: str, query_ids: Tensor, key_ids: Tensor, d: int = 16) -> tuple[Tensor, Tensor]:
    """Unit norm, float64, (Q, D) and (K, D); what a query and its positives have in common depends on ``kind``."""
    generator = torch.Generator().manual_seed(len(query_ids) + len(key_ids))

    def normal(n: int) -> Tensor:
        return torch.randn(n, d, dtype=torch.float64, generator=generator)

    names, place = torch.cat([query_ids, key_ids]).unique(return_inverse=True)
    q, k = place.split([len(query_ids), len(key_ids)])
    if kind == "orthonormal":
        d = max(d, len(names))
        eye = torch.linalg.qr(normal(d) if d == 16 else torch.randn(d, d, dtype=torch.float64, generator=generator))[0]
        return eye[q], eye[k]
    centre = normal(len(names))
    if kind == "random":
        queries, keys = normal(len(q)), normal(len(k))
    elif kind == "saturated":  # a positive wins by about exp(0.5 scale)
        queries, keys = (F.normalize(centre, dim=1)[i] + 0.08 * normal(len(i)) for i in (q, k))
    elif kind == "duplicates":  # other ids, the same features
        queries, keys = centre[q // 3], centre[k // 3]
    elif kind == "anti-aligned":  # a positive is the worst of all
        queries, keys = centre[q], -centre[k] + 0.1 * normal(len(k))
    elif kind == "one far":  # all keys alike, and the last query on the other side
        queries, keys = normal(len(q)), centre[:1] + 0.3 * normal(len(k))
        queries[-1:] = -centre[:1]
    else:  # all scores near -scale
        queries, keys = (sign * centre[:1] + 0.3 * normal(len(i)) for sign, i in ((1, q), (-1, k)))
    return F.normalize(queries, dim=1), F.normalize(keys, dim=1)


def table(
    feature_kind: str,
    id_kind: str,
    n: int,
    scale: float,
    bias: float | None = None,
    dtype: torch.dtype = torch.float64,
) -> Comparison:
    query_ids, key_ids = ids(id_kind, n)
    queries, keys = (x.to(dtype) for x in features(feature_kind, query_ids, key_ids))
    parameters = torch.float64 if dtype == torch.float64 else torch.float32
    log_scale = torch.tensor([math.log(scale)], dtype=parameters)
    return Comparison(
        queries, keys, query_ids, key_ids, log_scale, None if bias is None else torch.tensor([bias], dtype=parameters)
    )
