"""Which sample comes when: a pure function of (seed, epoch, number of samples).

No state, no generator that is advanced: position p of the stream is computed, so a run can start at any step, on any
number of processes, and see what the uninterrupted run would have seen. Permutations come from sorting a hash
(splitmix64, Steele et al. 2014, "Fast splittable pseudorandom number generators") and not from numpy's or torch's
generators, whose streams may change between versions.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError

CHUNK = 64  # neighbouring samples of a shard that are read together
WINDOW = 256  # chunks that are shuffled into one another

_U64 = np.uint64


def mix(*values: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A 64-bit hash of integers, elementwise over arrays: splitmix64's finaliser after each value."""
    h = np.asarray(0x9E3779B97F4A7C15, dtype=np.uint64)
    with np.errstate(over="ignore"):
        for value in values:
            h = h ^ np.asarray(value).astype(np.uint64)
            h = h + _U64(0x9E3779B97F4A7C15)
            h = (h ^ (h >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
            h = (h ^ (h >> _U64(27))) * _U64(0x94D049BB133111EB)
            h = h ^ (h >> _U64(31))
    return h


_MASK = (1 << 64) - 1


def mix_int(*values: int) -> int:
    """``mix`` of plain integers, which is 20 times as fast for a single one."""
    h = 0x9E3779B97F4A7C15
    for value in values:
        h = ((h ^ (value & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & _MASK
        h ^= h >> 31
    return h


def permutation(n: int, *seed: int) -> NDArray[np.int64]:
    """A permutation of range(n) that depends on ``seed`` alone."""
    return np.argsort(mix(*seed, np.arange(n, dtype=np.uint64)), kind="stable")


def sample_seed(seed: int, epoch: int, sample: int, purpose: int = 0) -> int:
    """Seed (63 bits) of everything drawn for one sample in one epoch: its view, its caption, its substitute."""
    return mix_int(seed, epoch, sample, purpose) >> 1


class Order:
    """The endless order of samples: epoch after epoch, each a permutation of all samples.

    Chunks of neighbouring samples are permuted over the whole data set; runs of ``window`` chunks are then shuffled
    sample by sample. So a batch draws from many shards while a read touches only the chunks of one window.

    Args:
        shard_sizes: samples of each shard, in order.
        seed: the run's seed.
        chunk: samples of a chunk. A chunk never spans two shards.
        window: chunks of a window; windows of an epoch differ by at most one chunk.
        shuffle: False gives the stored order, for evaluation.
    """

    def __init__(
        self, shard_sizes: list[int], seed: int, chunk: int = CHUNK, window: int = WINDOW, shuffle: bool = True
    ) -> None:
        self._made_of = (list(shard_sizes), seed, chunk, window, shuffle)
        starts, stops = [], []
        first = 0
        for size in shard_sizes:
            for start in range(0, size, chunk):
                starts.append(first + start)
                stops.append(first + min(start + chunk, size))
            first += size
        if first == 0:
            raise ClipkitError("the data set holds no samples")
        self.n = first
        self.seed = seed
        self.shuffle = shuffle
        self._starts = np.array(starts, dtype=np.int64)
        self._stops = np.array(stops, dtype=np.int64)
        n_windows = max(1, round(len(starts) / window))
        # chunks of window w of the permuted list: bounds[w] .. bounds[w + 1]
        self._bounds = np.linspace(0, len(starts), n_windows + 1).astype(np.int64)
        self._window = lru_cache(maxsize=4)(self._compute_window)
        self._epoch = lru_cache(maxsize=2)(self._compute_epoch)

    def __reduce__(self) -> tuple[type[Order], tuple[object, ...]]:
        return Order, self._made_of  # what is remembered stays behind: reading processes may be spawned

    def positions(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epoch and sample of stream positions [start, stop), each an int64 array (stop - start,)."""
        epochs, samples = [], []
        position = start
        while position < stop:
            epoch, within = divmod(position, self.n)
            take = min(stop - position, self.n - within)
            samples.append(self._within_epoch(epoch, within, within + take))
            epochs.append(np.full(take, epoch, dtype=np.int64))
            position += take
        return np.concatenate(epochs), np.concatenate(samples)

    def finished(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(0, epoch) of every epoch whose last sample lies in positions [start, stop)."""
        return [(0, epoch) for epoch in range(start // self.n, stop // self.n)]

    def _within_epoch(self, epoch: int, start: int, stop: int) -> NDArray[np.int64]:
        if not self.shuffle:
            return np.arange(start, stop, dtype=np.int64)
        _, ends = self._epoch(epoch)
        pieces = []
        window = int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            first = int(ends[window - 1]) if window else 0
            end = min(stop, int(ends[window]))
            pieces.append(self._window(epoch, window)[start - first : end - first])
            start, window = end, window + 1
        return np.concatenate(pieces)

    def _compute_epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's permutation of chunks, and the position at which each window ends."""
        chunks = permutation(len(self._starts), self.seed, epoch, 1)
        totals = np.concatenate([[0], np.cumsum((self._stops - self._starts)[chunks])])
        return chunks, totals[self._bounds[1:]]

    def _compute_window(self, epoch: int, window: int) -> NDArray[np.int64]:
        chunks, _ = self._epoch(epoch)
        members = chunks[self._bounds[window] : self._bounds[window + 1]]
        samples = np.concatenate([np.arange(self._starts[c], self._stops[c]) for c in members])
        return samples[permutation(len(samples), self.seed, epoch, 2, window)]


def piece(n: int, rank: int, world: int) -> slice:
    """Rank's part of n items: contiguous parts that differ by at most one item, the longer ones first."""
    base, extra = divmod(n, world)
    start = rank * base + min(rank, extra)
    return slice(start, start + base + (rank < extra))
