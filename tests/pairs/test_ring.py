"""The ring of memory: the batches are those of plain memory, a slot is never filled while somebody looks at it, and
what cannot be shared is not."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from clipkit.pairs.batch import PairBatch
from clipkit.pairs.ring import SLOTS, Empty, Parcel, Ring, new_memory
from clipkit.pairs.workers import read_in_workers

Items = list[tuple[int, int]]


@dataclass
class Pictures:
    """Batches of pictures that are all ``sample``; the process that first reads ``deadly`` dies."""

    mark: Path | None = None
    deadly: int = -1
    shape: tuple[int, ...] = (3, 40, 40)
    dtype: torch.dtype = torch.uint8

    def __call__(self, items: Items, empty: Empty) -> PairBatch:
        samples = torch.tensor([sample for _, sample in items])
        if self.mark is not None and self.deadly in samples and not self.mark.exists():
            self.mark.touch()
            time.sleep(0.3)  # until what was read before is delivered
            os.kill(os.getpid(), signal.SIGKILL)
        images = empty((len(items), *self.shape), self.dtype)
        images[:] = samples.view(-1, *[1] * len(self.shape))
        return PairBatch(images, None, samples, None)


def steps(n: int, size: int = 4) -> list[Items]:
    return [[(0, step)] * size for step in range(n)]


def read(ring: Ring, reader: Pictures, items: list[Items], workers: int = 1) -> Iterator[PairBatch]:
    return map(ring.open, read_in_workers(partial(ring.fill, reader), items, workers))


def value(batch: PairBatch) -> int:
    assert batch.images is not None
    (only,) = batch.images.unique().tolist()
    return int(only)


def in_slots(ring: Ring) -> int:
    return sum(state == 2 for state in ring._states[:])


@pytest.mark.parametrize(("workers", "dtype"), [(1, torch.uint8), (2, torch.float32), (2, torch.float16)])
def test_batches_come_in_order_and_memory_is_used_again(workers: int, dtype: torch.dtype) -> None:
    ring = Ring(workers)
    places = []
    for step, batch in enumerate(read(ring, Pictures(dtype=dtype), steps(24), workers)):
        assert batch.images is not None
        assert (batch.images.dtype, batch.images.shape) == (dtype, (4, 3, 40, 40))
        assert value(batch) == step == batch.image_ids[0]
        places.append(batch.images.data_ptr())
    assert len(places) == 24
    assert len(set(places)) <= workers * SLOTS


def test_what_is_held_is_not_overwritten() -> None:
    """All batches are kept: the slots run out, and the rest comes in other memory."""
    ring = Ring(2)
    kept = list(read(ring, Pictures(), steps(20), 2))
    assert [value(batch) for batch in kept] == list(range(20))
    assert in_slots(ring) == 2 * SLOTS


def test_a_view_of_a_batch_holds_its_slot() -> None:
    ring = Ring(1)
    held = []
    for batch in read(ring, Pictures(), steps(16)):
        assert batch.images is not None
        if len(held) < 2:
            held.append(batch.images[1:2, :, 3].numpy() if held else batch.images[0, 1])
        del batch
    assert [int(v.max()) for v in held] == [int(v.min()) for v in held] == [0, 1]
    assert in_slots(ring) == 2
    held.clear()
    gc.collect()
    assert in_slots(ring) == 0


def test_tensors_outlive_the_ring() -> None:
    ring = Ring(1)
    kept = list(read(ring, Pictures(), steps(3)))
    del ring
    gc.collect()
    assert [value(batch) for batch in kept] == [0, 1, 2]


def test_files_are_closed_with_the_ring() -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    ring = Ring(2)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    list(read(ring, Pictures(), steps(6), 2))
    del ring
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forked_process_frees_nothing() -> None:
    ring = Ring(1)
    held = list(read(ring, Pictures(), steps(2)))
    process = multiprocessing.get_context("fork").Process(target=held.clear)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert in_slots(ring) == 2


@pytest.mark.filterwarnings("ignore:a reading process died")
def test_slots_of_a_process_that_died_are_used_again(tmp_path: Path, quick: None) -> None:
    ring = Ring(1)
    reader = Pictures(tmp_path / "died", deadly=5)
    first = None
    for step, batch in enumerate(read(ring, reader, steps(30))):
        assert value(batch) == step
        first = first or batch
    assert step == 29
    assert (tmp_path / "died").exists()
    assert first is not None and value(first) == 0
    del batch
    assert in_slots(ring) == 1
    assert 1 not in ring._states[:], "sent to nobody, and never free again"


def test_a_batch_larger_than_the_first_comes_in_other_memory() -> None:
    ring = Ring(1)
    items = [[(0, 0)] * 2, [(0, 1)] * 300, [(0, 2)] * 2, [(0, 3)] * 1]
    sizes = []
    for step, batch in enumerate(read(ring, Pictures(), items)):
        assert value(batch) == step
        sizes.append((len(batch.image_ids), in_slots(ring)))
    assert [n for n, _ in sizes] == [2, 300, 2, 1]
    assert sizes[1][1] == 0, "the first slot is free again, and the large batch is in none"


class WithoutPictures(Pictures):
    def __call__(self, items: Items, empty: Empty) -> PairBatch:
        return PairBatch(None, torch.ones(2, 3), torch.tensor([items[0][1]]), None)


class Moved(Pictures):
    """The pictures are made in the slot, and then others are delivered."""

    def __call__(self, items: Items, empty: Empty) -> PairBatch:
        batch = super().__call__(items, empty)
        assert batch.images is not None
        return PairBatch(batch.images.flip(0) + 1, None, batch.image_ids, None)


def test_batches_without_pictures_of_the_ring_are_sent_whole() -> None:
    ring = Ring(1)
    assert [int(b.image_ids[0]) for b in read(ring, WithoutPictures(), steps(3))] == [0, 1, 2]
    assert [value(b) for b in read(ring, Moved(), steps(3))] == [1, 2, 3]
    assert in_slots(ring) == 0


@dataclass
class Everything(Pictures):
    """Every tensor that a batch can have, with a type and a shape of its own."""

    rows: int = 2

    def __call__(self, items: Items, empty: Empty) -> PairBatch:
        batch = super().__call__(items, empty)
        texts = torch.arange(self.rows * 5).view(self.rows, 5).to(torch.bfloat16)
        return replace(
            batch,
            texts=texts,
            text_ids=torch.arange(self.rows),
            labels=torch.tensor([[2], [1]])[:, 0],
            image_groups=torch.arange(6).view(2, 3).T,
            text_groups=torch.zeros(0, 3, dtype=torch.int64),
            text_shift=torch.tensor([0.5, -1.5]),
            text_places=torch.tensor(3),
            items=((0, 1),),
            mined=1,
        )


@pytest.mark.parametrize("rows", [2, 200_000], ids=["small", "large"])
def test_all_that_a_batch_holds_arrives(rows: int) -> None:
    """What is small is sent by value, what is large or has no type of numpy's in torch's shared memory."""
    ring, reader = Ring(1), Everything(rows=rows)
    (got,) = read(ring, reader, [[(0, 7)] * 2])
    want = reader([(0, 7)] * 2, new_memory)
    for field in fields(PairBatch):
        one, other = getattr(got, field.name), getattr(want, field.name)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype and torch.equal(one, other), field.name
            one.add_(1)  # nobody else's memory
        else:
            assert one == other, field.name
    assert in_slots(ring) == 1


def test_small_tensors_take_no_shared_memory() -> None:
    """Which takes a file and a socket for each: four milliseconds a batch."""
    parcel = Parcel.of(Everything()([(0, 7)] * 2, new_memory))
    shared = [f.name for f in fields(PairBatch) if isinstance(getattr(parcel.batch, f.name), torch.Tensor)]
    assert shared == ["images", "texts"]


def test_no_memory_for_a_slot_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    ring = Ring(1)
    assert [value(b) for b in read(ring, Pictures(), steps(5))] == list(range(5))
    assert in_slots(ring) == 0


def test_there_is_none_where_it_would_not_be_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ring.of(2) is not None

    def too_many(_: str) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", too_many)
        assert Ring.of(2) is None
    with monkeypatch.context() as patched:
        patched.delattr(os, "memfd_create")
        assert Ring.of(2) is None
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "forkserver")
    assert Ring.of(2) is None
