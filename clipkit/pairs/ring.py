"""Memory that reading processes fill with pictures and the process they read for looks at, again and again.

A batch in new shared memory costs a page fault for each of its pages, on the way in, and is written twice: once where
it is made and once where it is shared. In a ring it is made where it is shared, in pages that are there already.
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from clipkit.pairs.batch import PairBatch

SLOTS = 4  # of each process: two batches that it is ahead, one in use, and one that is just being handed over
_FREE, _SENT, _IN_USE = 0, 1, 2
_BY_VALUE = 1 << 20  # bytes of a tensor up to which it is copied

Empty = Callable[[Sequence[int], torch.dtype], Tensor]
"""(shape, dtype) -> a tensor whose values nobody has set."""


@dataclass(frozen=True)
class Parcel:
    """A batch on its way to another process.

    Attributes:
        batch: its pictures too, unless they lie in a slot.
        arrays: by name, those of its tensors that are sent by value: shared memory, which torch would make for each,
            costs a millisecond.
        slot: where its pictures lie, of ``shape`` and ``dtype``; None if in none.
    """

    batch: PairBatch
    arrays: dict[str, NDArray[Any]]
    slot: int | None = None
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.uint8

    @classmethod
    def of(cls, batch: PairBatch) -> Parcel:
        """``batch``, in no slot."""
        tensors = {f.name: x for f in fields(batch) if isinstance(x := getattr(batch, f.name), Tensor)}
        small = {
            name: x.numpy()
            for name, x in tensors.items()
            if name != "images" and x.nbytes <= _BY_VALUE and x.dtype != torch.bfloat16  # which numpy has not
        }
        nothing: dict[str, Any] = dict.fromkeys(small)
        return cls(replace(batch, **nothing), small)

    def whole(self, **tensors: Any) -> PairBatch:
        """The batch with what was sent by value, and with ``tensors``."""
        values: dict[str, Any] = {name: torch.from_numpy(x) for name, x in self.arrays.items()}
        return replace(self.batch, **values, **tensors)


class Ring:
    """Slots of memory that forked reading processes share with the one that started them.

    Each process fills slots of its own, and only free ones: where none is free, or a batch is larger than the first
    was, it takes new memory, as without a ring. A slot is free again when the last tensor over it is gone in the
    process that they read for; one that is forked from it later should copy the pictures that it wants to keep.

    Args:
        workers: how many reading processes there will be.
    """

    def __init__(self, workers: int) -> None:
        self._states = mmap.mmap(-1, workers * SLOTS)  # one byte each; zero, free, at first
        self._lengths = memoryview(mmap.mmap(-1, workers * 8)).cast("Q")  # of a process's slots, or zero
        self._files: list[int] = []
        self._maps: dict[int, mmap.mmap] = {}
        self._pid = os.getpid()
        weakref.finalize(self, _close, self._files, self._pid)
        for _ in range(workers):
            self._files.append(os.memfd_create("clipkit-batches"))

    @classmethod
    def of(cls, workers: int) -> Ring | None:
        """A ring for so many processes, or None where they would not share it: it needs fork, and Linux."""
        forked = multiprocessing.get_start_method() == "fork" and hasattr(os, "memfd_create")
        if not forked:
            return None
        try:
            return cls(workers)
        except OSError:  # too many open files
            return None

    def fill(self, read: Callable[[list[tuple[int, int]], Empty], PairBatch], items: list[tuple[int, int]]) -> Parcel:
        """In a reading process: the batch of ``items``, with its pictures in a slot if one is free."""
        free = self._free_slot()
        if free is None:
            return Parcel.of(read(items, new_memory))
        lent: list[Tensor] = []

        def empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
            n = math.prod(shape) * dtype.itemsize
            if lent or not self._open(free, n):
                return new_memory(shape, dtype)
            lent.append(_tensor(np.frombuffer(self._maps[free], np.uint8, n), shape, dtype))
            return lent[0]

        batch = read(items, empty)
        images = batch.images
        if images is None or not lent or images.data_ptr() != lent[0].data_ptr() or not images.is_contiguous():
            return Parcel.of(batch)
        self._states[free] = _SENT
        sent = Parcel.of(replace(batch, images=None))
        return replace(sent, slot=free, shape=tuple(images.shape), dtype=images.dtype)

    def open(self, parcel: Parcel) -> PairBatch:
        """In the process they read for: the batch of ``parcel``, over its slot."""
        if parcel.slot is None:
            return parcel.whole()
        self._map(parcel.slot)
        self._states[parcel.slot] = _IN_USE
        n = math.prod(parcel.shape) * parcel.dtype.itemsize
        memory = np.frombuffer(self._maps[parcel.slot], np.uint8, n)  # which every tensor over it keeps alive
        weakref.finalize(memory, _release, self._states, parcel.slot, self._pid).atexit = False
        return parcel.whole(images=_tensor(memory, parcel.shape, parcel.dtype))

    def _free_slot(self) -> int | None:
        """The first free slot of this process, which is in use already and has its pages, or None."""
        info = get_worker_info()
        if info is None or info.id >= len(self._files):
            return None
        own = range(info.id * SLOTS, (info.id + 1) * SLOTS)
        if self._pid != os.getpid():  # just begun
            self._pid, self._maps = os.getpid(), {}
            for slot in own:  # what the one before it, which died, had sent is not delivered any more
                if self._states[slot] == _SENT:
                    self._states[slot] = _FREE
        return next((slot for slot in own if self._states[slot] == _FREE), None)

    def _open(self, slot: int, n: int) -> bool:
        """Whether ``slot`` has, or can be given, ``n`` bytes."""
        worker = slot // SLOTS
        if not self._lengths[worker]:  # which stays: slots of another length would lie over those in use
            self._lengths[worker] = -(-n // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        if not 0 < n <= self._lengths[worker]:
            return False
        try:
            if slot not in self._maps:
                os.posix_fallocate(self._files[worker], *self._place(slot))
                self._map(slot)
        except OSError:  # no memory is left for it
            return False
        return True

    def _map(self, slot: int) -> None:
        if slot not in self._maps:
            offset, length = self._place(slot)
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            self._maps[slot] = mmap.mmap(self._files[slot // SLOTS], length, flags=flags, offset=offset)

    def _place(self, slot: int) -> tuple[int, int]:
        """First byte of ``slot`` in its file, and its length."""
        length = self._lengths[slot // SLOTS]
        return slot % SLOTS * length, length


def new_memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """An uninitialized tensor in memory of this process."""
    return torch.empty(tuple(shape), dtype=dtype)


def _tensor(memory: NDArray[np.uint8], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(memory).view(dtype).view(*shape)


def _release(states: mmap.mmap, slot: int, pid: int) -> None:
    if os.getpid() == pid:  # a process that was forked meanwhile has the tensors too, and is not who uses them
        states[slot] = _FREE


def _close(files: list[int], pid: int) -> None:
    if os.getpid() == pid:
        for file in files:
            with suppress(OSError):
                os.close(file)
