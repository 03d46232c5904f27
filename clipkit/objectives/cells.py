"""Which cells of a tile are positive and which do not count, found by sorting ids and not by comparing all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clipkit.objectives.comparison import NO_GROUP, in_common

Places = tuple[Tensor, Tensor]  # row and column within a tile, (n,) int64 each


def cut(ids: Tensor, size: int) -> Iterator[tuple[slice, Tensor, tuple[int, int]]]:
    """Slices of at most ``size``, their ids, and the smallest and largest of these."""
    pieces = ids.split(size) if len(ids) else ()
    ranges = torch.stack([torch.stack(piece.aminmax()) for piece in pieces]).tolist() if pieces else []
    for i, (piece, (low, high)) in enumerate(zip(pieces, ranges, strict=True)):
        yield slice(i * size, i * size + len(piece)), piece, (low, high)


def equal(ids: Tensor, others: Tensor) -> Places | None:
    """Row and column of every pair of equal ids, without a (r, c) table of comparisons."""
    ordered, order = others.sort()
    first = torch.searchsorted(ordered, ids.contiguous())
    n = torch.searchsorted(ordered, ids.contiguous(), right=True) - first
    row = torch.repeat_interleave(n)
    place = torch.arange(len(row), device=row.device) - (n.cumsum(0) - n)[row]  # among the row's own
    return (row, order[first[row] + place]) if len(row) else None


def matches(ids: Tensor, others: Tensor) -> Tensor:
    """(n,) int64: for each of ``ids`` (n,) how many of ``others`` (m,) are equal to it."""
    ordered, ids = others.sort().values, ids.contiguous()
    return torch.searchsorted(ordered, ids, right=True) - torch.searchsorted(ordered, ids)


def guarded(ids: Tensor, others: Tensor, groups: Tensor, other_groups: Tensor) -> Places | Tensor | None:
    """Cells of unequal ids with a group in common: their places while they are few, otherwise a (r, c) bool mask."""
    found: list[Places] = []
    n = 0
    for group, other in zip(groups.unbind(1), other_groups.unbind(1), strict=True):
        rows = (group != NO_GROUP).nonzero()[:, 0]
        n += int(matches(group[rows], other).sum()) if len(rows) else 0
        if n > len(ids) + len(others):
            return in_common(groups, other_groups) & (ids[:, None] != others[None, :])
        places = equal(group[rows], other) if len(rows) else None
        if places is not None:
            found.append((rows[places[0]], places[1]))
    if not found:
        return None
    row, column = (torch.cat(side) for side in zip(*found, strict=True))
    apart = ids[row] != others[column]
    cells = (row[apart] * len(others) + column[apart]).unique()  # in common in several columns, but one cell
    return (cells // len(others), cells % len(others)) if len(cells) else None


def without_selves(places: Places | None, offset: int) -> Places | None:
    """``places`` that are not on the diagonal column = row + ``offset``."""
    if places is None:
        return None
    row, column = places
    keep = column != row + offset
    return (row[keep], column[keep]) if keep.any() else None


def with_selves(
    places: Places | Tensor | None, offset: int, shape: tuple[int, int], like: Tensor
) -> Places | Tensor | None:
    """``places`` (or a mask) and the diagonal column = row + ``offset`` of a tile of ``shape``."""
    first, end = max(0, -offset), min(shape[0], shape[1] - offset)
    if first >= end:
        return places
    row = torch.arange(first, end, device=like.device)
    if isinstance(places, Tensor):
        places[row, row + offset] = True
        return places
    others = without_selves(places, offset)
    if others is None:
        return row, row + offset
    return torch.cat([others[0], row]), torch.cat([others[1], row + offset])
