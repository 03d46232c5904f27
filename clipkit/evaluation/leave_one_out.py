"""Interactions split for leave-one-out: the last item of each user is held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import as_numpy


@dataclass(frozen=True)
class LeaveOneOut:
    """What training may see of R interactions, and what was held out of them.

    Attributes:
        train_R: bool (R,), the interactions for training.
        users: (U,) the users with a held-out item, sorted; held_out: (U,) that item; both as they were given.
        seen: for each of ``users`` its items in training, sorted.
    """

    train_R: np.ndarray
    users: np.ndarray
    held_out: np.ndarray
    seen: list[np.ndarray]


def leave_one_out(users_R: Any, items_R: Any, times_R: Any = None) -> LeaveOneOut:
    """Hold out the last item of every user that has at least two different ones (He et al. 2017, Neural Collaborative
    Filtering, section 4.1).

    Args:
        users_R, items_R: who took what, one interaction a row; numbers or texts.
        times_R: when; of equal times the later row is the later one. Default: the rows are in order.

    Every interaction of a user with its held-out item is held out, earlier ones too: training must not see the answer.
    Users with one item stay in training as they are.

    Raises:
        ClipkitError: arrays of other lengths, or a value that is missing (None, NaN or NaT).
    """
    users, items = as_numpy(users_R), as_numpy(items_R)
    times = np.arange(len(users)) if times_R is None else as_numpy(times_R)
    if users.ndim != 1 or not len(users) or not users.shape == items.shape == times.shape:
        raise ClipkitError(
            f"users, items and times have shapes {users.shape}, {items.shape} and {times.shape}: give one of each for "
            "every interaction"
        )
    for name, values in (("users_R", users), ("items_R", items), ("times_R", times)):
        missing = np.flatnonzero(_is_missing(values))
        if len(missing):
            raise ClipkitError(f"{name}[{missing[0]}] is {values[missing[0]]}: leave that interaction out")
    names, user_R = np.unique(users, return_inverse=True)
    _, item_R = np.unique(items, return_inverse=True)
    order = np.lexsort((np.arange(len(users)), times, user_R))
    last = np.flatnonzero(np.append(np.diff(user_R[order]), 1))  # where the next row is another user's
    last_row_U = order[last]

    held_R = item_R == item_R[last_row_U][user_R]
    different_U = np.bincount(user_R[~held_R], minlength=len(names)) > 0  # something is left to learn from
    train_R = ~held_R | ~different_U[user_R]
    kept = np.flatnonzero(different_U)
    mine = np.flatnonzero(train_R)
    mine = mine[np.argsort(user_R[mine], kind="stable")]
    bounds = np.searchsorted(user_R[mine], [kept, kept + 1])
    seen = [np.unique(items[mine[low:high]]) for low, high in bounds.T]
    return LeaveOneOut(train_R, names[kept], items[last_row_U[kept]], seen)


def _is_missing(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind in "mM":
        return np.isnat(values)
    if values.dtype.kind == "O":
        return np.array([value is None or value != value for value in values], dtype=bool)
    return np.isnan(values) if values.dtype.kind == "f" else np.zeros(values.shape, dtype=bool)
