"""Batches: the same global batch for any number of ranks and workers, from any step, with bad samples replaced."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.pairs import Order, PairBatch, PairReader, ShardSet, decode_image, open_shards, step_items
from clipkit.pairs.stream import stream

BATCH, STEPS = 13, 9  # 9 batches of 13 out of 48 samples: two epochs and a half


class Picture:
    """The picture's mean colour, its sample and its seed's low bits: everything a view may depend on."""

    def __call__(self, shards: ShardSet, sample: int, seed: int) -> Tensor:
        pixels = decode_image(shards.read(sample).image, shards.where(sample)).float().mean((1, 2))
        return torch.cat([pixels, torch.tensor([float(sample), float(seed % 100_003)])])


class Texts:
    """Captions as their numbers and places."""

    def __call__(self, chosen: list[tuple[int, int, str]]) -> Tensor:
        rows = [[sample, place, int(text.split()[0]), ord(text.split()[1])] for sample, place, text in chosen]
        return torch.tensor(rows, dtype=torch.int64).reshape(-1, 4)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> ShardSet:
    return open_shards(write_shards(tmp_path_factory.mktemp("good"), 4, 12))


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> ShardSet:
    return open_shards(write_shards(tmp_path_factory.mktemp("bad"), 4, 12, bad=(0, 7, 8, 9, 30, 47)))


def order_of(shards: ShardSet, seed: int = 5) -> Order:
    return Order(shards.sizes, seed, chunk=4, window=3)


def global_batches(
    shards: ShardSet, world: int = 1, workers: int = 0, start: int = 0, stop: int = STEPS, **options: object
) -> list[list[PairBatch]]:
    """Every step's pieces, in rank order."""
    reader = PairReader(shards, Picture(), Texts(), seed=5, **options)  # type: ignore[arg-type]
    ranks = [
        list(stream(reader, order_of(shards), BATCH, start=start, stop=stop, rank=r, world=world, workers=workers))
        for r in range(world)
    ]
    assert all(len(batches) == stop - start for batches in ranks)
    return [list(pieces) for pieces in zip(*ranks, strict=True)]


def joined(pieces: list[PairBatch]) -> tuple[list[list[float]], list[list[int]], list[int], list[int], list[object]]:
    return (
        [row for p in pieces for row in p.images.tolist()],
        [row for p in pieces for row in p.texts.tolist()],
        [i for p in pieces for i in p.image_ids.tolist()],
        [i for p in pieces for i in p.text_ids.tolist()],
        [b for p in pieces for b in p.bad],
    )


@pytest.mark.parametrize("data", ["shards", "damaged"])
def test_batches_do_not_depend_on_ranks_or_workers(data: str, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(data)
    expected = [joined(p) for p in global_batches(source)]
    for world, workers in ((1, 1), (1, 3), (2, 0), (3, 0), (2, 2), (8, 0), (13, 0)):
        pieces = global_batches(source, world, workers)
        sizes = [len(p.image_ids) for p in pieces[0]]
        assert sum(sizes) == BATCH and max(sizes) - min(sizes) <= 1
        assert [joined(p) for p in pieces] == expected, (world, workers)


@pytest.mark.parametrize("captions", ["one", "all"])
def test_any_step_can_be_the_first(damaged: ShardSet, captions: str) -> None:
    expected = [joined(p) for p in global_batches(damaged, captions=captions)]
    for start in (1, 4, 8, 9):
        later = global_batches(damaged, world=2, start=start, captions=captions)
        assert [joined(p) for p in later] == expected[start:]
    assert [joined(p) for p in global_batches(damaged, 1, 2, start=5, captions=captions)] == expected[5:]


def test_every_epoch_holds_every_sample_once(shards: ShardSet) -> None:
    seen = [i for p in global_batches(shards, stop=STEPS) for i in joined(p)[2]]
    order = order_of(shards)
    for step in range(STEPS):
        positions = order.positions(step * BATCH, (step + 1) * BATCH)[1]
        assert sorted(positions.tolist()) == sorted(seen[step * BATCH : (step + 1) * BATCH])
    # the tail of an epoch is carried: three batches of 16 are one epoch of 48
    items = [i for step in range(6) for i in step_items(order, step, 16)]
    for epoch in (0, 1):
        assert sorted(s for e, s in items if e == epoch) == list(range(48))


def test_a_piece_is_sorted_by_place(shards: ShardSet) -> None:
    order = order_of(shards)
    for step in range(8):
        whole = step_items(order, step, BATCH)
        assert [s for _, s in whole] == sorted(s for _, s in whole)
        assert [i for r in range(3) for i in step_items(order, step, BATCH, r, 3)] == whole


def test_pictures_and_captions_belong_together(shards: ShardSet, picture: Callable[..., bytes]) -> None:
    for (batch,) in global_batches(shards):
        assert batch.image_ids.dtype == batch.text_ids.dtype == torch.int64
        assert batch.image_ids.tolist() == batch.text_ids.tolist() and batch.bad == ()
        for row, text, sample in zip(batch.images, batch.texts.tolist(), batch.image_ids.tolist(), strict=True):
            expected = decode_image(picture(sample, (12, 10))).float().mean((1, 2))
            assert torch.equal(row[:3], expected)
            assert text[0] == text[2] == sample and text[1] == "ab".index(chr(text[3]))


def test_captions_and_views_are_drawn_anew_each_epoch(shards: ShardSet) -> None:
    rows: dict[int, list[tuple[int, float]]] = {}
    for (batch,) in global_batches(shards, stop=100):
        for image, text in zip(batch.images, batch.texts, strict=True):
            rows.setdefault(int(text[0]), []).append((int(text[1]), float(image[4])))
    places = np.array([place for drawn in rows.values() for place, _ in drawn])
    assert 0.4 < places.mean() < 0.6
    assert all(len({seed for _, seed in drawn}) == len(drawn) > 20 for drawn in rows.values())
    assert all(0 < sum(place for place, _ in drawn) < len(drawn) for drawn in rows.values())


def test_all_captions(shards: ShardSet) -> None:
    for (batch,) in global_batches(shards, captions="all"):
        assert batch.text_ids.tolist() == [i for i in batch.image_ids.tolist() for _ in range(2)]
        assert batch.texts[:, 1].tolist() == [0, 1] * BATCH


def test_bad_samples_are_replaced_named_and_counted(damaged: ShardSet) -> None:
    bad = {0, 7, 8, 9, 30, 47}
    order, named = order_of(damaged), []
    for step, (batch,) in enumerate(global_batches(damaged)):
        wanted = [s for _, s in step_items(order, step, BATCH)]
        assert len(batch.image_ids) == BATCH
        assert not bad & set(batch.image_ids.tolist())
        assert [b for s, b in zip(wanted, batch.image_ids.tolist(), strict=True) if s not in bad] == [
            s for s in wanted if s not in bad
        ], "good samples were moved"
        assert {s for s in wanted if s in bad} <= {b.sample for b in batch.bad} <= bad
        assert batch.image_ids.tolist() == batch.text_ids.tolist()
        named += batch.bad
    assert {b.sample for b in named} == bad
    for b in named:
        assert f"{b.sample:06d}.jpg" in b.where and "picture" in b.reason
    substitutes = [tuple(b.image_ids.tolist()) for (b,) in global_batches(damaged)]
    assert substitutes == [tuple(b.image_ids.tolist()) for (b,) in global_batches(damaged)]


def test_evaluation_leaves_bad_samples_out(damaged: ShardSet) -> None:
    reader = PairReader(damaged, Picture(), Texts(), seed=0, captions="all", substitute=False)
    batch = reader([(0, s) for s in range(12)])
    assert batch.image_ids.tolist() == [1, 2, 3, 4, 5, 6, 10, 11]
    assert batch.text_ids.tolist() == [i for i in batch.image_ids.tolist() for _ in range(2)]
    assert [b.sample for b in batch.bad] == [0, 7, 8, 9]
    nothing = reader([(0, 0), (0, 7)])
    assert len(nothing.image_ids) == len(nothing.text_ids) == 0 and len(nothing.bad) == 2


@pytest.mark.parametrize("record", [{}, {"captions": []}, {"captions": ["", " "]}, {"captions": 5}, {"captions": [1]}])
def test_a_sample_without_captions_is_a_bad_sample(
    tmp_path: Path, write_tar: Callable[..., Path], picture: Callable[..., bytes], record: dict[str, object]
) -> None:
    parts = []
    for n in range(6):
        told = record if n == 3 else {"captions": [f"{n} a"]}
        parts += [(f"{n}.jpg", picture(n)), (f"{n}.json", json.dumps(told).encode())]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = open_shards(write_tar(tmp_path / "a.tar", parts))
    batch = PairReader(source, Picture(), Texts(), seed=0)([(0, n) for n in range(6)])
    assert len(batch.image_ids) == 6 and 3 not in batch.image_ids.tolist()
    assert {b.sample for b in batch.bad} == {3}
    assert all("3.jpg" in b.where and b.reason for b in batch.bad)


def test_nothing_but_bad_samples_stops_with_one_line(tmp_path: Path, write_shards: Callable[..., Path]) -> None:
    source = open_shards(write_shards(tmp_path, 1, 5, bad=range(5)))
    with pytest.raises(ClipkitError) as caught:
        PairReader(source, Picture(), Texts(), seed=0)([(0, 1)])
    assert "bad" in str(caught.value) and "\n" not in str(caught.value)


def test_impossible_batches_name_the_flag(shards: ShardSet) -> None:
    reader = PairReader(shards, Picture(), Texts(), seed=0)
    with pytest.raises(ClipkitError, match=r"48.*--batch-size"):
        stream(reader, order_of(shards), 49, stop=1)
    with pytest.raises(ClipkitError, match="--batch-size 2"):
        stream(reader, order_of(shards), 2, stop=1, world=3)
    assert len(list(stream(reader, order_of(shards), 48, stop=1))) == 1
    assert list(stream(reader, order_of(shards), 48, start=3, stop=3, workers=2)) == []


def test_workers_leave_no_numbers_to_chance(shards: ShardSet) -> None:
    """The global generators may stand anywhere."""
    first = [joined(p) for p in global_batches(shards, workers=2)]
    torch.manual_seed(99)
    np.random.seed(99)
    assert [joined(p) for p in global_batches(shards, workers=2)] == first


def test_a_batch_can_be_moved(shards: ShardSet) -> None:
    ((batch,),) = global_batches(shards, stop=1)
    moved = batch.to(torch.device("cpu"))
    assert torch.equal(moved.images, batch.images) and torch.equal(moved.text_ids, batch.text_ids)


def test_a_single_sample_is_told_to_get_company(tmp_path: Path, write_shards: Callable[..., Path]) -> None:
    from clipkit.pairs.stream import check_batch_size

    alone, two = (open_shards(write_shards(tmp_path / str(n), 1, n)) for n in (1, 2))
    with pytest.raises(ClipkitError, match="1 samples, fewer than a batch of 8; give more data"):
        check_batch_size(alone, 8, 1)
    with pytest.raises(ClipkitError, match="pass --batch-size 2 or less"):
        check_batch_size(two, 8, 1)
