"""The order of samples is a pure function, a permutation each epoch, and well mixed."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs.order import Order, mix, permutation, piece, sample_seed

SIZES = [[1000] * 7, [64] * 5, [1, 0, 2, 130, 65, 64, 63], [5], [1], [3000, 1, 999]]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("chunk", "window"), [(64, 256), (8, 4), (1, 1), (7, 3)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_is_a_permutation(sizes: list[int], chunk: int, window: int, shuffle: bool) -> None:
    order = Order(sizes, seed=3, chunk=chunk, window=window, shuffle=shuffle)
    n = sum(sizes)
    epochs, samples = order.positions(0, 3 * n)
    assert epochs.tolist() == np.repeat(range(3), n).tolist()
    rows = samples.reshape(3, n)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(n), (3, 1)))
    if shuffle and n > 50:
        assert not np.array_equal(rows[0], rows[1]) and not np.array_equal(rows[1], rows[2])
        assert not np.array_equal(rows[0], np.arange(n))
    if not shuffle:
        assert np.array_equal(rows[1], np.arange(n))


def test_any_slice_is_the_slice_of_the_whole_with_the_tail_carried() -> None:
    sizes = [100, 37, 0, 64, 200, 1]
    n = sum(sizes)
    whole_epochs, whole = Order(sizes, seed=1, chunk=16, window=4).positions(0, 4 * n)
    random = np.random.default_rng(0)
    for _ in range(200):
        start, stop = sorted(random.integers(0, 4 * n, 2))
        if start == stop:
            continue
        epochs, samples = Order(sizes, seed=1, chunk=16, window=4).positions(int(start), int(stop))
        assert np.array_equal(samples, whole[start:stop]) and np.array_equal(epochs, whole_epochs[start:stop])
    # a batch over the end of an epoch: nothing twice, nothing lost
    batch = 48
    seen = [Order(sizes, 1, 16, 4).positions(t * batch, (t + 1) * batch)[1] for t in range(2 * n // batch + 1)]
    assert np.array_equal(np.concatenate(seen)[: 2 * n], whole[: 2 * n])


def test_one_object_gives_the_same_whatever_was_asked_before() -> None:
    order = Order([500] * 8, seed=2, chunk=16, window=8)
    first = order.positions(1200, 1300)[1]
    for start in (0, 9000, 40_000, 3999, 17):
        order.positions(start, start + 700)
    assert np.array_equal(order.positions(1200, 1300)[1], first)
    assert order.positions(10**12, 10**12 + 3)[1].shape == (3,)


def test_seeds_and_epochs_differ() -> None:
    sizes = [512] * 4
    zero, one = (Order(sizes, seed=s).positions(0, 2048)[1] for s in (0, 1))
    assert (zero == one).mean() < 0.01
    later = Order(sizes, seed=0).positions(2048, 4096)[1]
    assert (zero == later).mean() < 0.01 and (one == later).mean() < 0.01


def test_a_stored_order_never_changes() -> None:
    """The hash itself (splitmix64's finaliser) is what makes a run resumable under another version."""

    def reference(*values: int) -> int:
        mask, h = (1 << 64) - 1, 0x9E3779B97F4A7C15
        for value in values:
            h = ((h ^ value) + 0x9E3779B97F4A7C15) & mask
            h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & mask
            h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & mask
            h ^= h >> 31
        return h

    for values in ((0,), (1, 2, 3), (2**63, 2**64 - 1), (7, 0, 0, 7)):
        assert int(mix(*values)) == reference(*values)
    assert np.array_equal(mix(5, np.arange(4, dtype=np.uint64)), [reference(5, i) for i in range(4)])
    assert sample_seed(1, 2, 3, 4) == reference(1, 2, 3, 4) >> 1 < 2**63


def test_sample_seeds_do_not_collide() -> None:
    seeds = {sample_seed(s, e, i, p) for s in range(3) for e in range(3) for i in range(100) for p in range(4)}
    assert len(seeds) == 3 * 3 * 100 * 4


def test_permutations_are_uniform() -> None:
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), permutation(6, seed, 0, 1)] += 1
    assert np.abs(counts / 3000 - 1 / 6).max() < 0.04


@pytest.mark.parametrize("per_shard", [1000, 300])
def test_a_batch_draws_from_many_shards(per_shard: int) -> None:
    order = Order([per_shard] * 64, seed=0)
    steps = order.n // 256
    for step in range(0, steps, max(1, steps // 40)):
        _, samples = order.positions(step * 256, (step + 1) * 256)
        assert len(set((samples // per_shard).tolist())) >= 30


def test_reads_stay_in_one_window_of_whole_chunks() -> None:
    chunk, window, sizes = 16, 8, [1000] * 8  # 63 chunks a shard, the last of 8 samples
    order = Order(sizes, seed=5, chunk=chunk, window=window)
    _, samples = order.positions(0, order.n)
    chunks = samples // 1000 * 63 + samples % 1000 // chunk
    first = {int(c): int(np.flatnonzero(chunks == c)[0]) for c in set(chunks.tolist())}
    last = {int(c): int(np.flatnonzero(chunks == c)[-1]) for c in set(chunks.tolist())}
    spans = [last[c] - first[c] for c in first]
    assert max(spans) < (window + 1) * chunk, "a chunk is spread over more than one window"
    open_at_once = [sum(first[c] <= at <= last[c] for c in first) for at in range(0, order.n, 97)]
    assert max(open_at_once) <= window + 1
    assert np.mean(spans) > window * chunk * 0.5, "samples are not shuffled over their window"


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
def test_pieces_tile_the_batch_and_differ_by_one(world: int) -> None:
    for n in range(0, 40):
        parts = [list(range(n))[piece(n, r, world)] for r in range(world)]
        assert [i for part in parts for i in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert sorted(map(len, parts), reverse=True) == list(map(len, parts))


def test_no_samples_is_an_error() -> None:
    for sizes in ([], [0], [0, 0]):
        with pytest.raises(ClipkitError):
            Order(sizes, seed=0)


def test_an_order_can_be_sent_to_a_spawned_process() -> None:
    order = Order([70, 3, 200], seed=5, chunk=16, window=2)
    order.positions(0, 300)  # something is remembered
    again = pickle.loads(pickle.dumps(order))
    for mine, sent in zip(order.positions(100, 600), again.positions(100, 600), strict=True):
        assert np.array_equal(mine, sent)
