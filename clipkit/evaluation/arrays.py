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


def finite_rows(name: str, values: Any, dtype: type = np.float32) -> np.ndarray:
    """`values` as a contiguous array (rows, D) of finite numbers, of any norm; ClipkitError otherwise."""
    rows = as_numpy(values)
    if rows.ndim != 2 or 0 in rows.shape:
        raise ClipkitError(f"{name} has shape {rows.shape}: pass one row of numbers each, (rows, dimensions)")
    if rows.dtype.kind not in "fiub":
        raise ClipkitError(f"{name} has dtype {rows.dtype}: pass real numbers, float32 at best")
    rows = np.ascontiguousarray(rows, dtype=dtype)
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if bad.size:
        raise ClipkitError(
            f"{name}[{bad[0]}] holds NaN or infinity ({bad.size} bad rows of {len(rows)}): find out which input the "
            "encoder could not handle"
        )
    return rows


def label_codes(
    train_name: str, train_labels: Any, n_train: int, test_name: str, test_labels: Any, n_test: int
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Labels as classes 0 … C - 1, both int64 (n,), and the classes' names; classes are those of training, sorted.

    Labels are whole numbers or texts. Raises ClipkitError for other shapes and types, fewer than two classes, or a
    test label that no training sample has, which could never be right.
    """
    labels = []
    for name, values, length in ((train_name, train_labels, n_train), (test_name, test_labels, n_test)):
        array = as_numpy(values)
        if array.shape != (length,):
            raise ClipkitError(f"{name} has shape {array.shape}: it needs ({length},), one label a row")
        if array.dtype.kind not in "iubUSO":
            raise ClipkitError(f"{name} has dtype {array.dtype}: labels are whole numbers or texts")
        labels.append(array if array.dtype.kind in "iub" else array.astype(str))
    if (labels[0].dtype.kind == "U") != (labels[1].dtype.kind == "U"):
        raise ClipkitError(
            f"{train_name} and {test_name} are of two kinds: use the same whole numbers or texts in both"
        )
    classes, train = np.unique(labels[0], return_inverse=True)
    if len(classes) < 2:
        raise ClipkitError(f"{train_name} has one class, {classes[0]}: a probe tells at least two apart")
    test = np.minimum(np.searchsorted(classes, labels[1]), len(classes) - 1)
    unknown = np.flatnonzero(classes[test] != labels[1])
    if unknown.size:
        first = int(unknown[0])
        raise ClipkitError(
            f"{test_name}[{first}] is {labels[1][first].item()!r}, which no training sample has ({unknown.size} such "
            "labels): leave these samples out, or add training samples"
        )
    return train.astype(np.int64), test.astype(np.int64), [str(c) for c in classes.tolist()]
