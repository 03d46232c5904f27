"""Checks on what an evaluation is given: a wrong array must stop it, not become a wrong number."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipkit.errors import ClipkitError

# Rows normalised in float32 are within 1e-6 of norm 1; rows normalised in float16 within 1e-3. Those of
# bfloat16 are not, and their scores are too coarse to rank by.
NORM_TOLERANCE = 2e-3


def as_numpy(values: Any) -> np.ndarray:
    """An array, a list or a tensor on any device and of any dtype as a numpy array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point():
            values = values.float()
        values = values.numpy()
    return np.asarray(values)


def unit_rows(name: str, values: Any) -> np.ndarray:
    """`values` as a contiguous float32 array (rows, D) of finite rows of norm 1.

    `name` is what an error calls it. Raises ClipkitError for another number of dimensions, no rows, NaN or
    infinity, or a row that is not normalised.
    """
    rows = as_numpy(values)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ClipkitError(f"{name} has shape {rows.shape}: pass one embedding a row, (rows, dimensions)")
    if not np.issubdtype(rows.dtype, np.number) or np.issubdtype(rows.dtype, np.complexfloating):
        raise ClipkitError(f"{name} has dtype {rows.dtype}: pass real numbers, float32 at best")
    rows = np.ascontiguousarray(rows, dtype=np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    # a norm is NaN or infinite as soon as one of its entries is, so that one pass checks both
    bad = np.flatnonzero(~(np.abs(norms - 1) <= NORM_TOLERANCE))
    if bad.size:
        row = int(bad[0])
        if not np.isfinite(rows[row]).all():
            column = int(np.flatnonzero(~np.isfinite(rows[row]))[0])
            raise ClipkitError(
                f"{name}[{row}, {column}] is {rows[row, column]} ({bad.size} bad rows of {len(rows)}): "
                "find out which input the encoder could not handle"
            )
        raise ClipkitError(
            f"{name}[{row}] has norm {norms[row]:.4g}, not 1 ({bad.size} bad rows of {len(rows)}): "
            "divide each row by its norm, in float32"
        )
    return rows


def same_width(name: str, rows_ND: np.ndarray, other_name: str, other_MD: np.ndarray) -> None:
    """Raise ClipkitError unless both arrays have rows of the same length."""
    if rows_ND.shape[1] != other_MD.shape[1]:
        raise ClipkitError(
            f"{name} has {rows_ND.shape[1]} dimensions and {other_name} {other_MD.shape[1]}: "
            "embed both with the same model"
        )


def indices(name: str, values: Any, length: int, below: int, below_name: str) -> np.ndarray:
    """`values` as an int64 array (length,) with entries in 0 … below - 1; ClipkitError otherwise."""
    array = as_numpy(values)
    if array.shape != (length,):
        raise ClipkitError(f"{name} has shape {array.shape}: it needs ({length},), one entry a row")
    if not np.issubdtype(array.dtype, np.integer):
        raise ClipkitError(f"{name} has dtype {array.dtype}: it needs whole numbers")
    array = array.astype(np.int64)
    wrong = np.flatnonzero((array < 0) | (array >= below))
    if wrong.size:
        first = int(wrong[0])
        raise ClipkitError(
            f"{name}[{first}] is {array[first]}, but there are {below:,} {below_name} (0 to {below - 1})"
        )
    return array


def image_indices(image_of_text_M: Any, n_texts: int, n_images: int) -> np.ndarray:
    """The picture of each caption as int64 (M,), where every picture has at least one caption."""
    owner_M = indices("image_of_text_M", image_of_text_M, n_texts, n_images, "pictures")
    without = np.flatnonzero(np.bincount(owner_M, minlength=n_images) == 0)
    if without.size:
        raise ClipkitError(
            f"picture {without[0]} has no caption in image_of_text_M ({without.size} such pictures of "
            f"{n_images}): leave pictures without captions out"
        )
    return owner_M
