"""Shards behind HTTP: the same samples in chunk-sized reads, through a network that fails, and no loss in silence."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from shard_server import FAULTS, Server, serve
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.pairs import Order, PairReader, ShardSet, open_shards
from clipkit.pairs.chunks import Chunk, read_chunk, sweep
from clipkit.pairs.index import INDEX_SUFFIX, load_index
from clipkit.pairs.mask import write_mask
from clipkit.pairs.remote import Remote, UnreachableError, find_remote, is_remote
from clipkit.pairs.stream import stream

Write = Callable[..., Path]
SHARDS, EACH = 3, 150  # three chunks a shard, the last of them of 22 samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_shards: Write) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), SHARDS, EACH)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("clipkit.pairs.remote.PAUSE", 0.001)


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    with serve(folder) as state:
        yield state


@pytest.fixture
def local(folder: Path, tmp_path: Path) -> ShardSet:
    copy = tmp_path / "local"
    copy.mkdir()
    for tar in folder.glob("*.tar"):
        (copy / tar.name).write_bytes(tar.read_bytes())
    return open_shards(copy)


def remote(server: Server) -> ShardSet:
    return open_shards(f"{server.url}/{{000000..{SHARDS - 1:06d}}}.tar")


def picture(shards: ShardSet, sample: int, seed: int) -> Tensor:
    return torch.tensor([*shards.read(sample).image[-200:], sample, seed % 1000])


def texts(chosen: list[tuple[int, int, str]]) -> Tensor:
    return torch.tensor([int(text.split()[0]) for _, _, text in chosen])


def batches(shards: ShardSet, workers: int = 0, steps: int = 12) -> list[tuple[list[int], list[list[int]], list[int]]]:
    reader = PairReader(shards, picture, texts, seed=1)
    made = stream(reader, Order(shards.sizes, 1), 48, stop=steps, workers=workers)
    out = [(b.image_ids.tolist(), b.images.tolist(), b.texts.tolist()) for b in made if not b.bad]
    assert len(out) == steps, "a sample was taken for a bad one"
    return out


def test_what_is_a_url() -> None:
    assert is_remote("http://a/b.tar") and is_remote("s3://bucket/{0..9}.tar")
    assert not any(map(is_remote, ("a.tar", "/a/b.tar", "C:\\a.tar", "a::b", "pipe:cat a.tar", Path("x"))))


def test_remote_samples_are_the_local_ones(server: Server, local: ShardSet) -> None:
    found = remote(server)
    assert found.fingerprint == local.fingerprint and found.sizes == local.sizes
    assert list(found) == list(local)
    assert found.where(0) == f"{server.url}/000000.tar/000000.jpg"
    assert len(open_shards(f"{server.url}/000001.tar")) == EACH


def test_reads_are_chunks_and_each_comes_once(server: Server, local: ShardSet) -> None:
    found = remote(server)
    server.asked.clear()
    assert batches(found, steps=30) == batches(local, steps=30)  # three epochs of 450
    assert sorted(server.gets()) == sorted(set(server.gets())) and len(server.gets()) == 3 * SHARDS
    assert batches(remote(server), workers=2) == batches(local), "another process has them already"
    assert len(server.gets()) == 3 * SHARDS


def test_processes_share_what_they_fetch(server: Server, local: ShardSet) -> None:
    found = remote(server)
    server.asked.clear()
    assert batches(found, workers=2) == batches(local)
    assert sorted(server.gets()) == sorted(set(server.gets()))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_network_that_fails_loses_nothing(server: Server, local: ShardSet, workers: int) -> None:
    draw = random.Random(workers)
    server.faults = (draw.choice(FAULTS) if draw.random() < 0.5 else None for _ in itertools.count())
    server.latency = 0.003
    assert batches(remote(server), workers) == batches(local)
    assert len(server.failed) >= 3 and sum(server.failed.values()) >= 8


def test_every_fault_is_noticed(server: Server, local: ShardSet) -> None:
    shard = find_remote(f"{server.url}/000000.tar")
    right = (server.root / "000000.tar").read_bytes()[1000:9000]
    for fault in FAULTS:
        server.faults = itertools.chain([fault, fault], itertools.repeat(None))
        assert shard.read(1000, 8000) == right, fault
        assert server.failed[fault] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_network_that_is_gone_stops_with_one_line(
    server: Server, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with substitutes: the samples are not bad, they are only out of reach."""
    found = remote(server)
    server.down = True
    with pytest.raises(ClipkitError, match="--resume auto") as caught:
        batches(found, workers)
    assert "\n" not in str(caught.value) and server.url in str(caught.value)
    with pytest.raises(UnreachableError):
        remote(server)


def test_a_server_without_ranges(server: Server, local: ShardSet) -> None:
    server.ranges = False
    assert batches(remote(server), steps=3) == batches(local, steps=3)


def test_what_is_not_there_is_named(server: Server) -> None:
    with pytest.raises(ClipkitError, match=r"000003\.tar.*no such file"):
        open_shards(f"{server.url}/{{000002..000003}}.tar")
    with pytest.raises(ClipkitError, match="cannot be read"):
        open_shards("nosuchprotocol://a/b.tar")


def test_an_index_is_built_once_and_again_when_the_tar_changes(server: Server) -> None:
    url = f"{server.url}/000000.tar"
    first = load_index(find_remote(url))
    asked = len(server.gets())
    assert load_index(find_remote(url)).fingerprint == first.fingerprint
    assert len(server.gets()) == asked, "the stored index was not used"
    server.tag = "2"
    load_index(find_remote(url))
    assert len(server.gets()) > asked


def test_an_index_beside_the_tar_is_taken(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1, 20)
    here = open_shards(folder)  # writes the index beside
    assert (folder / f"000000.tar{INDEX_SUFFIX}").is_file()
    with serve(folder) as server:
        assert open_shards(f"{server.url}/000000.tar").fingerprint == here.fingerprint
        assert server.gets() == [] and len(server.gets(INDEX_SUFFIX)) == 1
        with (folder / "000000.tar").open("ab") as file:  # another file than the index tells of
            file.write(bytes(1024))
        assert open_shards(f"{server.url}/000000.tar").fingerprint == here.fingerprint
        assert len(server.gets()) > 0


@pytest.mark.slow
def test_a_full_disk_costs_speed_and_no_sample(
    server: Server, local: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = remote(server)
    monkeypatch.setenv("CLIPKIT_CACHE", "/proc/no/such/place")
    assert batches(found, steps=2) == batches(local, steps=2)


def test_a_damaged_chunk_is_fetched_again(server: Server) -> None:
    chunk = Chunk(find_remote(f"{server.url}/000000.tar"), 512, 4096)
    right = (server.root / "000000.tar").read_bytes()[600:4000]
    assert read_chunk(chunk, 600, 3400) == right
    chunk.path.write_bytes(b"cut off")
    assert read_chunk(chunk, 600, 3400) == right


def test_the_oldest_chunks_go_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    folder = tmp_path / "chunks"
    (folder / "a").mkdir(parents=True)
    for n in range(10):
        (folder / "a" / str(n)).write_bytes(bytes(1000))
        os.utime(folder / "a" / str(n), (n, n))
    sweep(folder, lambda path: (0, 0, 10**9))
    assert len(list(folder.glob("*/*"))) == 10
    monkeypatch.setenv("CLIPKIT_CHUNKS_GIB", str(3500 / 2**30))
    sweep(folder, lambda path: (0, 0, 10**9))
    assert sorted(p.name for p in folder.glob("*/*")) == ["7", "8", "9"]
    monkeypatch.delenv("CLIPKIT_CHUNKS_GIB")
    sweep(folder, lambda path: (0, 0, 0))  # the disk is full: half of what is held
    assert sorted(p.name for p in folder.glob("*/*")) == ["9"]


def test_members_that_lie_far_apart_are_read_one_by_one(tmp_path: Path, write_tar: Write) -> None:
    parts = [(f"{n}.jpg", bytes([n]) * 600) for n in range(4)]
    parts += [("between.bin", bytes(100_000)), *((f"{n}.txt", b"a") for n in range(4))]
    with serve(write_tar(tmp_path / "a.tar", parts).parent) as server:
        with pytest.warns(UserWarning, match="adjacent"):
            found = open_shards(f"{server.url}/a.tar")
        server.asked.clear()
        assert [s.image[:1] for s in found] == [bytes([n]) for n in range(4)]
        assert isinstance(found.shards[0].path, Remote) and len(server.gets()) == 4


def test_a_mask_beside_the_tar_is_honoured(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 1, 20)
    index = load_index(folder / "000000.tar")
    keep = np.ones(20, dtype=bool)
    keep[[3, 7]] = False
    write_mask(index, keep)
    here = open_shards(folder)
    with serve(folder) as server:
        there = open_shards(f"{server.url}/000000.tar")
        assert len(there) == 18 and there.fingerprint == here.fingerprint and list(there) == list(here)
        write_mask(index, np.zeros(20, dtype=bool))
        with pytest.raises(ClipkitError, match="filters hide every sample"):
            open_shards(f"{server.url}/000000.tar")


def test_a_bucket_that_may_not_be_listed_says_403_of_what_is_not_there(server: Server, local: ShardSet) -> None:
    server.absent = 403
    assert remote(server).fingerprint == local.fingerprint, "there is no index and no mask beside the tars"
    asked = len(server.asked)
    with pytest.raises(ClipkitError, match=r"000009\.tar: refused .*403") as caught:
        open_shards(f"{server.url}/000009.tar")
    assert not isinstance(caught.value, UnreachableError) and len(server.asked) <= asked + 2, "asked but once"
