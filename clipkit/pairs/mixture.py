"""Several sources in one endless order, each with its share of every stretch.

As pure a function as ``Order``: which source a position belongs to, and how many of that source's samples came before
it, are computed and not counted, so a mixture can start at any step too.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from clipkit.errors import ClipkitError
from clipkit.pairs.order import Order, mix_int, permutation
from clipkit.pairs.shards import ShardSet

STRETCH = 4096  # positions in which every source has exactly its share


class Mixture:
    """The endless order of the samples of several sources.

    Each source goes through its own epochs, every sample once in each; a source of twice its natural weight is simply
    through twice as often. Samples are numbered as in the joined ``ShardSet``.

    Args:
        shards: the joined shards, from ``join_shards``.
        seed: the run's seed.

    Attributes:
        n: samples of all sources: a run's ``--epochs`` are so many samples each.
    """

    def __init__(self, shards: ShardSet, seed: int) -> None:
        self._made_of = (shards, seed)
        self.n = len(shards)
        self.seed = seed
        self.shares = shares([part.weight for part in shards.parts], [part.name for part in shards.parts])
        self._orders, self._first = [], []
        at = first = 0
        for number, part in enumerate(shards.parts):
            sizes = shards.sizes[at : at + part.n_shards]
            self._orders.append(Order(sizes, mix_int(seed, number, 5) >> 1))
            self._first.append(first)
            at, first = at + part.n_shards, first + sum(sizes)
        self._stretch = lru_cache(maxsize=4)(self._compute_stretch)

    def __reduce__(self) -> tuple[type[Mixture], tuple[object, ...]]:
        return Mixture, self._made_of

    def positions(self, start: int, stop: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epoch (of its source) and sample of stream positions [start, stop), each an int64 array (stop - start,)."""
        which = [
            self._stretch(s)[max(0, start - s * STRETCH) : stop - s * STRETCH]
            for s in range(start // STRETCH, (stop - 1) // STRETCH + 1)
        ]
        source_of = np.concatenate(which) if which else np.zeros(0, dtype=np.int64)
        epochs, samples = np.zeros_like(source_of), np.zeros_like(source_of)
        for source, order in enumerate(self._orders):
            mine = source_of == source
            before = self._before(start, source)
            if mine.any():
                epochs[mine], samples[mine] = order.positions(before, before + int(mine.sum()))
                samples[mine] += self._first[source]
        return epochs, samples

    def finished(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(source, epoch) of every epoch whose last sample lies in positions [start, stop)."""
        ends = []
        for source, order in enumerate(self._orders):
            ends += [
                (source, epoch) for _, epoch in order.finished(self._before(start, source), self._before(stop, source))
            ]
        return ends

    def _before(self, position: int, source: int) -> int:
        """Samples of ``source`` among the first ``position``."""
        stretch, within = divmod(position, STRETCH)
        return stretch * self.shares[source] + int((self._stretch(stretch)[:within] == source).sum())

    def _compute_stretch(self, stretch: int) -> NDArray[np.int64]:
        sources = np.repeat(np.arange(len(self.shares)), self.shares)
        return sources[permutation(STRETCH, self.seed, stretch, 6)]


def make_order(shards: ShardSet, seed: int) -> Order | Mixture:
    """The order of ``shards`` for training."""
    return Mixture(shards, seed) if shards.parts else Order(shards.sizes, seed)


def shares(weights: list[float], names: list[str]) -> list[int]:
    """Positions of each source in a stretch, by largest remainders.

    Raises:
        ClipkitError: a weight that is not above 0, or too small beside the others.
    """
    for weight, name in zip(weights, names, strict=True):
        if not 0 < weight < float("inf"):
            raise ClipkitError(f"--train-weights: {name} has weight {weight:g}; it must be above 0")
    exact = np.array(weights, dtype=np.float64) / sum(weights) * STRETCH
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: STRETCH - int(counts.sum())]] += 1
    for count, name in zip(counts, names, strict=True):
        if count == 0:
            raise ClipkitError(
                f"--train-weights: the share of {name} is less than one sample in {STRETCH}; give it more, or leave "
                f"it out"
            )
    return [int(n) for n in counts]
