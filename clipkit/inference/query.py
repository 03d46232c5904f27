"""What people ask for, to the vector that is searched with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner


def query_vector(model: Aligner, query: Any, minus: Any) -> NDArray[np.float32]:
    """float32 (D,), unit norm: the embeddings of ``query`` added, those of ``minus`` taken off.

    Args:
        query: a text, a picture, an embedding float (D,), or a list of these.
        minus: as ``query``; an empty one for nothing.

    Raises:
        ClipkitError: an empty text, an unreadable picture, or nothing left to look for.
    """
    plus, less = ([*x] if isinstance(x, (list, tuple)) else [x] for x in (query, minus))
    if len(plus) == 1 and not less:
        return _embedding(model, plus[0])
    if not plus:
        raise ClipkitError("nothing to search for: give at least one text or picture to look for")
    total = sum((_embedding(model, term) for term in plus), np.zeros(model.embed_dim, dtype=np.float32))
    total = total - sum((_embedding(model, term) for term in less), np.zeros_like(total))
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise ClipkitError("nothing is left of the query: what is taken off is what was looked for")
    return np.asarray(total / np.float32(length), dtype=np.float32)


def _embedding(model: Aligner, term: Any) -> NDArray[np.float32]:
    if isinstance(term, str):
        return model.encode_text(term)
    if isinstance(term, np.ndarray) and term.shape == (model.embed_dim,) and term.dtype.kind == "f":
        length = float(np.linalg.norm(term.astype(np.float64)))
        if not 0 < length < math.inf:
            raise ClipkitError("an embedding to search for is zero, or holds NaN or infinity")
        return (term / length).astype(np.float32)
    return model.encode_image(term)
