"""Files of shards: how many are open, in threads too, and where a process may open few."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipkit.pairs import open_shards
from clipkit.pairs.remote import UnreachableError

Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files in /proc")
def test_closed_sets_give_their_files_back(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 4, 1)

    def read_all() -> None:
        assert len(list(open_shards(folder))) == 4

    read_all()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        read_all()
    assert len(os.listdir("/proc/self/fd")) <= before + 4


def test_threads_that_read_more_shards_than_may_be_open_get_their_own_bytes(
    write_shards: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An open file that makes room for another may be in use by another thread, and its number is given out again."""
    monkeypatch.setattr("clipkit.pairs.files._OPEN_FILES", 2)
    shards = open_shards(write_shards(tmp_path / "shards", 12, 3))
    expected = [shards.read_captions(i) for i in range(len(shards))]
    assert expected == [(f"{i} a", f"{i} b") for i in range(36)]
    wanted = np.random.default_rng(0).integers(0, 36, 6000).tolist()
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda i: shards.read_record(i)[1], wanted)) == [expected[i] for i in wanted]


def test_a_process_that_may_open_few_files_reads_all_the_same(tmp_path: Path, write_shards: Write) -> None:
    """Files that are open make room; where none is, the run stops, as another sample would fare no better."""
    resource = pytest.importorskip("resource")
    found = open_shards(write_shards(tmp_path / "s", 40, 1))
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 8, limits[1]))
        assert [s.captions[0] for s in found] == [f"{n} a" for n in range(40)]
        found.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        with pytest.raises(UnreachableError, match=r"000003\.jpg: cannot be read \(Too many open files\).*ulimit -n"):
            found.read(3)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_few_shards_are_kept_open_where_a_process_may_open_few_files(tmp_path: Path, write_shards: Write) -> None:
    """A quarter: what hands batches from process to process needs files as well, and would wait for ever without."""
    resource = pytest.importorskip("resource")
    found = open_shards(write_shards(tmp_path / "s", 40, 1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (128, limits[1]))
        assert len(list(found)) == 40
        assert len(found._files._files) == 32
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
