"""Tensors across processes, with exact gradients.

``accelerator.gather`` and ``torch.distributed.all_gather`` carry no gradient, and the usual replacements return 1/W
of it or W times the temperature's. Here the backward pass of every exchange is the transposed exchange, so the
gradient of the sum of all ranks' losses reaches every rank's inputs.

A table's keys reach the queries of all ranks in one of two ways. ``Gathered`` holds everybody's keys on every rank:
one all-gather there and one reduce-scatter back, half of what gathering both modalities would send. ``Ring`` hands
the keys round, a rank's piece at a time: as many bytes, more messages, but never more than two pieces of keys, and in
the backward pass two of their gradients, in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_alone = False


def world_size() -> int:
    """Processes that compare with one another; 1 outside a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process compares as if it were the only one: nothing is exchanged."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def rank() -> int:
    """This process's number; 0 outside a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def is_first() -> bool:
    """Whether this process is the one that counts, prints and writes."""
    return rank() == 0


def row_counts(n: int, device: torch.device) -> list[int]:
    """Every rank's number of rows, given this rank's."""
    return all_counts([n], device)[0]


def all_counts(numbers: list[int], device: torch.device) -> list[list[int]]:
    """Every rank's ``numbers``, given this rank's, in one exchange: for each of them a list over the ranks."""
    if world_size() == 1:
        return [[n] for n in numbers]
    counts = torch.zeros(len(numbers), world_size(), dtype=torch.int64, device=device)
    counts[:, rank()] = torch.tensor(numbers, device=device)
    dist.all_reduce(counts)
    return counts.tolist()


# torch 2.14 renamed them.
_all_gather: Any = getattr(dist, "all_gather_single", None) or getattr(dist, "all_gather_into_tensor", None)
_reduce_scatter: Any = getattr(dist, "reduce_scatter_single", None) or getattr(dist, "reduce_scatter_tensor", None)


@torch.no_grad()
def gather_plain(rows: Tensor, counts: list[int]) -> Tensor:
    """All ranks' rows in rank order, (sum(counts), ...); carries no gradient."""
    if len(counts) == 1:
        return rows
    # Pieces may differ in length, and gloo refuses uneven ones: everybody sends the longest.
    longest = max(counts)
    everyone = rows.new_empty(len(counts) * longest, *rows.shape[1:])
    _all_gather(everyone, _padded(rows, longest))
    if min(counts) == longest:
        return everyone
    return torch.cat([piece[:count] for piece, count in zip(everyone.split(longest), counts, strict=True)])


@torch.no_grad()
def scatter_sum(rows: Tensor, counts: list[int]) -> Tensor:
    """This rank's piece (counts[rank()], ...) of the sum of all ranks' ``rows`` (sum(counts), ...)."""
    if len(counts) == 1:
        return rows
    longest = max(counts)
    if min(counts) < longest:
        rows = torch.cat([_padded(piece, longest) for piece in rows.split(counts)])
    mine = rows.new_empty(longest, *rows.shape[1:])
    _reduce_scatter(mine, rows.contiguous())
    return mine[: counts[rank()]]


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    padded = rows.new_zeros(length, *rows.shape[1:])
    padded[: len(rows)] = rows
    return padded


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.counts = counts
        return gather_plain(rows, counts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return scatter_sum(grads[0], ctx.counts), None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return sum_plain(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_plain(grads[0])


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
def sum_plain(x: Tensor) -> Tensor:
    """The sum of all ranks' ``x``, the same bits on every rank; carries no gradient."""
    if world_size() == 1:
        return x
    total = x.clone()
    dist.all_reduce(total)
    return total


@torch.no_grad()
def max_over_ranks(x: Tensor) -> Tensor:
    """The elementwise maximum of all ranks' ``x``; carries no gradient."""
    if world_size() == 1:
        return x.detach()
    top = x.detach().clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX)
    return top


class Gathered:
    """Everybody's keys on every rank, as one block.

    Args:
        keys: (k, D), this rank's.
        counts: every rank's number of keys.
        everyone: the gathered keys, where an earlier pass has them already.
    """

    def __init__(self, keys: Tensor, counts: list[int], everyone: Tensor | None = None) -> None:
        self.counts = counts
        self.keys = gather_plain(keys, counts) if everyone is None else everyone
        self._grad: Tensor | None = None

    def blocks(self, grads: bool = False) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """(first column, keys (k, D), a place (k, D) for their gradients or None) of each block of columns."""
        self._grad = torch.zeros_like(self.keys) if grads else None
        yield 0, self.keys, self._grad

    def grad(self) -> Tensor | None:
        """The sum of all ranks' gradients of this rank's keys, once the blocks have been walked."""
        return None if self._grad is None else scatter_sum(self._grad, self.counts)


class Ring:
    """Everybody's keys in turn: each rank sends the block that it has to its neighbour and takes the next.

    The gradients of a block travel with it, so that after W hops it is home with the sum of all ranks'.

    Args:
        keys: (k, D), this rank's.
        counts: every rank's number of keys.
    """

    def __init__(self, keys: Tensor, counts: list[int]) -> None:
        self.counts = counts
        self.keys = keys
        self._grad: Tensor | None = None

    def blocks(self, grads: bool = False) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """As ``Gathered.blocks``, a block for each rank, this rank's first."""
        world, me = len(self.counts), rank()
        first = [sum(self.counts[:r]) for r in range(world)]
        block = _padded(self.keys, max(self.counts))
        grad = torch.zeros_like(block) if grads else None
        for hop in range(world):
            owner = (me - hop) % world
            n = self.counts[owner]
            following = torch.empty_like(block)
            # the next block arrives while this one is compared
            arriving = _shift(block, following) if hop + 1 < world else []
            yield first[owner], block[:n], None if grad is None else grad[:n]
            for request in arriving:
                request.wait()
            block = following
            if grad is not None and world > 1:
                received = torch.empty_like(grad)
                for request in _shift(grad, received):
                    request.wait()
                grad = received
        self._grad = grad

    def grad(self) -> Tensor | None:
        """As ``Gathered.grad``."""
        return None if self._grad is None else self._grad[: self.counts[rank()]]


def _shift(out: Tensor, into: Tensor) -> list[Any]:
    """Send ``out`` to the next rank while ``into`` arrives from the one before; wait for what it returns."""
    world, me = world_size(), rank()
    return dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, out, (me + 1) % world), dist.P2POp(dist.irecv, into, (me - 1) % world)]
    )
