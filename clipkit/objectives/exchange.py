"""Tensors across processes, with exact gradients.

``accelerator.gather`` and ``torch.distributed.all_gather`` carry no gradient, and the usual replacements return 1/W
of it or W times the temperature's. These two functions are differentiable: the backward pass of each is the
transposed exchange, so the gradient of the sum of all ranks' losses reaches every rank's inputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Processes that compare with one another; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 outside a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def row_counts(n: int, device: torch.device) -> list[int]:
    """Every rank's number of rows, given this rank's."""
    if world_size() == 1:
        return [n]
    counts = torch.zeros(world_size(), dtype=torch.int64, device=device)
    counts[rank()] = n
    dist.all_reduce(counts)
    return [int(c) for c in counts.tolist()]


# torch 2.14 renamed them.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        # Pieces may differ in length, and gloo refuses uneven ones: everybody sends the longest.
        longest = max(counts)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        everyone = rows.new_empty(len(counts) * longest, *rows.shape[1:])
        _all_gather(everyone, padded)
        pieces = everyone.split(longest)
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        counts: list[int] = ctx.counts
        longest = max(counts)
        padded = grad.new_zeros(len(counts) * longest, *grad.shape[1:])
        for r, piece in enumerate(grad.split(counts)):
            padded[r * longest : r * longest + len(piece)] = piece
        mine = grad.new_empty(longest, *grad.shape[1:])
        _reduce_scatter(mine, padded)
        return mine[: counts[rank()]], None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """All ranks' rows, in rank order; the backward pass sums the gradients of all ranks (a reduce-scatter).

    Args:
        rows: (n, ...), with n = ``counts[rank()]``.
        counts: every rank's number of rows.

    Returns:
        (sum(counts), ...).
    """
    return rows if len(counts) == 1 else _GatherRows.apply(rows, counts)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of all ranks' ``x``; the backward pass sums the gradients of all ranks too."""
    return x if world_size() == 1 else _SumOverRanks.apply(x)


@torch.no_grad()
def max_over_ranks(x: Tensor) -> Tensor:
    """The elementwise maximum of all ranks' ``x``; carries no gradient."""
    if world_size() == 1:
        return x.detach()
    top = x.detach().clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX)
    return top


def is_first() -> bool:
    """Whether this process is the one that counts, prints and writes."""
    return rank() == 0
