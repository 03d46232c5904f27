"""Many inputs through a tower that is not being trained: in pieces that suit the device, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

# A CPU's caches and allocator like small pieces: 16 pictures at once take 1.5x as long as four times 4.
CPU_PICTURES, CPU_CAPTIONS = 4, 32
_BATCH = 128  # of an accelerator
_READERS = 4  # threads that decode for an accelerator while it computes

A = TypeVar("A")
B = TypeVar("B")


def side_by_side(
    run: Callable[[Sequence[A]], B], items: Sequence[A], device: torch.device, on_cpu: int, batch: int = _BATCH
) -> Iterator[tuple[Sequence[A], B]]:
    """Pieces of ``items`` with what ``run`` makes of each, in order.

    On a CPU the pieces run side by side, each on one core: threads that share one small piece wait for each other at
    every layer, ten times as long as they compute when another program has one of the cores. For an accelerator the
    threads read ahead.

    Args:
        run: reads, encodes, returns; called in other threads, so it enters inference mode and autocast itself.
        device: where ``run`` computes.
        on_cpu: items of a piece on a CPU.
        batch: items of a piece elsewhere, and the most on a CPU.
    """
    cpu = device.type == "cpu"
    threads = torch.get_num_threads()
    size = max(1, min(on_cpu, batch) if cpu else batch)
    pieces = [items[start : start + size] for start in range(0, len(items), size)]
    if len(pieces) == 1:  # a single question: all cores on it, no thread to start
        yield pieces[0], run(pieces[0])
        return
    workers = threads if cpu else _READERS
    try:
        with ThreadPoolExecutor(workers, initializer=_one_core if cpu else None) as pool:
            waiting: deque[tuple[Sequence[A], Future[B]]] = deque()
            try:
                for piece in pieces:
                    waiting.append((piece, pool.submit(run, piece)))
                    if len(waiting) > 2 * workers:
                        first, result = waiting.popleft()
                        yield first, result.result()
                while waiting:
                    first, result = waiting.popleft()
                    yield first, result.result()
            finally:
                for _, result in waiting:  # one failed, or nobody wants the rest
                    result.cancel()
    finally:
        if cpu:
            torch.set_num_threads(threads)


def _one_core() -> None:
    torch.set_num_threads(1)
