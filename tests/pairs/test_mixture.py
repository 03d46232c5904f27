"""Mixtures: shares kept, every source's epochs whole, and any step can be the first."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs import Mixture, Order, ShardSet, join_shards, make_order, open_shards, step_items
from clipkit.pairs.mixture import STRETCH, shares
from clipkit.pairs.stream import check_batch_size


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> list[ShardSet]:
    folder = tmp_path_factory.mktemp("sources")
    return [open_shards(write_shards(folder / name, n, each)) for name, n, each in (("a", 3, 50), ("b", 1, 20))]


def test_weights_are_kept_in_every_stretch(sets: list[ShardSet]) -> None:
    order = Mixture(join_shards(sets, [3, 1]), seed=0)
    _, samples = order.positions(0, 3 * STRETCH)
    of_b = (samples >= 150).reshape(3, STRETCH)
    assert of_b.sum(axis=1).tolist() == [STRETCH // 4] * 3
    windows = of_b.reshape(-1, 256).mean(axis=1)
    assert windows.min() > 0.1 and windows.max() < 0.4, "a batch has its share too"


def test_without_weights_every_source_has_that_of_its_size(sets: list[ShardSet]) -> None:
    joined = join_shards(sets)
    assert [part.weight for part in joined.parts] == [150, 20]
    assert Mixture(joined, 0).shares == [round(STRETCH * 150 / 170), round(STRETCH * 20 / 170)]


def test_every_source_goes_through_whole_epochs(sets: list[ShardSet]) -> None:
    order = Mixture(join_shards(sets, [1, 1]), seed=4)
    epochs, samples = order.positions(0, 700)
    for first, n in ((0, 150), (150, 20)):
        mine = (samples >= first) & (samples < first + n)
        for epoch in range(int(epochs[mine].max())):
            assert sorted(samples[mine & (epochs == epoch)].tolist()) == list(range(first, first + n))
    assert epochs[samples < 150].max() == 2 and epochs[samples >= 150].max() >= 16


def test_any_stretch_is_that_of_the_whole(sets: list[ShardSet]) -> None:
    order = Mixture(join_shards(sets, [0.3, 0.7]), seed=2)
    epochs, samples = order.positions(0, 3 * STRETCH)
    draw = np.random.default_rng(0)
    for start, length in [(0, 1), (STRETCH - 1, 2), (STRETCH, STRETCH), *draw.integers(1, STRETCH, (20, 2)).tolist()]:
        e, s = Mixture(join_shards(sets, [0.3, 0.7]), seed=2).positions(start, start + length)
        assert np.array_equal(e, epochs[start : start + length]) and np.array_equal(s, samples[start : start + length])
    assert order.positions(10**9, 10**9 + 5)[1].shape == (5,)
    assert order.positions(7, 7)[1].shape == (0,)


def test_ranks_share_a_batch_of_a_mixture(sets: list[ShardSet]) -> None:
    order = make_order(join_shards(sets, [1, 1]), 0)
    for step in (0, 5, 4096 // 24):
        whole = step_items(order, step, 24)
        for world in (2, 3, 4, 8):
            assert [i for rank in range(world) for i in step_items(order, step, 24, rank, world)] == whole


def test_seeds_differ_and_so_do_the_sources(sets: list[ShardSet]) -> None:
    joined = join_shards([sets[0], sets[0]], [1, 1])
    one, other = (Mixture(joined, seed).positions(0, 300)[1] for seed in (0, 1))
    assert (one == other).mean() < 0.1
    assert not np.array_equal(one[one < 150][:100], one[one >= 150][:100] - 150)


@pytest.mark.parametrize("batch", [7, 20, 64])
def test_the_ends_of_epochs_are_found_where_they_are(sets: list[ShardSet], batch: int) -> None:
    for order, first in (
        (Mixture(join_shards(sets, [1, 2]), 1), [0, 150, 170]),
        (Order([50, 50, 50], seed=1), [0, 150]),
    ):
        told = [(step, *end) for step in range(40) for end in order.finished(step * batch, (step + 1) * batch)]
        samples = order.positions(0, 40 * batch)[1]
        seen = []
        for source in range(len(first) - 1):
            mine = np.flatnonzero((samples >= first[source]) & (samples < first[source + 1]))
            n = first[source + 1] - first[source]
            seen += [(int(mine[(e + 1) * n - 1]) // batch, source, e) for e in range(len(mine) // n)]
        assert sorted(told) == sorted(seen)


def test_weights_that_make_no_sense(sets: list[ShardSet]) -> None:
    for weights in ([1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [1, 1e-9]):
        with pytest.raises(ClipkitError, match=r"--train-weights.*b"):
            Mixture(join_shards(sets, weights), 0)
    with pytest.raises(ClipkitError, match="3 weights for 2"):
        join_shards(sets, [1, 2, 3])
    assert sum(shares([1, 1, 1], ["a", "b", "c"])) == STRETCH
    joined = join_shards(sets, [1, 9])
    check_batch_size(joined, 20, 1)
    with pytest.raises(ClipkitError, match=r"b has 20 samples.*27 of 30"):
        check_batch_size(joined, 30, 1)


def test_other_weights_are_other_data(sets: list[ShardSet]) -> None:
    prints = {join_shards(sets, w).fingerprint for w in ([1, 1], [1, 2])} | {sets[0].fingerprint}
    assert len(prints) == 3
    joined = join_shards(sets, [1, 1])
    assert [joined.key(i) for i in (0, 149, 150, 169)] == ["000000", "000149", "000000", "000019"]


def test_a_mixture_can_be_sent_to_a_spawned_process(sets: list[ShardSet]) -> None:
    order = Mixture(join_shards(sets, [3, 1]), seed=2)
    order.positions(0, 300)  # something is remembered
    again = pickle.loads(pickle.dumps(order))
    for mine, sent in zip(order.positions(100, 600), again.positions(100, 600), strict=True):
        assert np.array_equal(mine, sent)
