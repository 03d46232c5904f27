"""An index follows its folder: only what changed is encoded, one writer at a time, whole after any kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.inference import Index, index_update
from clipkit.inference.index_files import HEADER, LOCK, exclusive


@pytest.fixture
def folder(tmp_path: Path, picture: Any) -> Path:
    """Eight pictures of an hour ago."""
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    for i in range(8):
        put(picture, i, root / ("deep" if i % 2 else ".") / f"{i}.png")
    return root


def put(picture: Any, seed: int, path: Path, age: float = 3600) -> None:
    picture(seed).save(path)
    os.utime(path, (time.time() - age,) * 2)


class Counting:
    """A model that notes how many pictures it encodes."""

    def __init__(self, model: Any, patch: pytest.MonkeyPatch) -> None:
        self.model, self.n = model, 0
        real = type(model).encode_pixels

        def counted(own: Any, pixels: Any, normalize: bool = True) -> Any:
            self.n += len(pixels)
            return real(own, pixels, normalize)

        patch.setattr(type(model), "encode_pixels", counted)

    def since(self) -> int:
        n, self.n = self.n, 0
        return n


@pytest.fixture
def counting(model: Any, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(model, monkeypatch)


def same(index: Index, model: Any, folder: Path) -> bool:
    fresh = Index.build(model, folder)
    np.testing.assert_allclose(index.embeddings, fresh.embeddings, atol=1e-6)
    return [(i.path, i.key, i.content) for i in index.items] == [(i.path, i.key, i.content) for i in fresh.items]


def test_only_what_changed_is_encoded(folder: Path, tmp_path: Path, counting: Counting, picture: Any) -> None:
    path, model = tmp_path / "an.index", counting.model
    index, changes = Index.update(path, model, folder)
    assert changes == (8, 0, 0, 0) and counting.since() == 8
    assert same(index, model, folder) and counting.since() == 8

    before = sorted(p.name for p in path.iterdir())
    assert Index.update(path, model, folder)[1] == (0, 0, 0, 8) and counting.since() == 0
    assert sorted(p.name for p in path.iterdir()) == before, "nothing new, nothing written"

    put(picture, 100, folder / "new.png")
    put(picture, 101, folder / "2.png", age=1800)  # another picture under an old name
    (folder / "4.png").unlink()
    (folder / "6.png").rename(folder / "moved.png")  # known by its content
    shutil.copy(folder / "0.png", folder / "copy.png")
    os.utime(folder / "0.png")  # touched, not changed
    index, changes = Index.update(path, model, folder)
    assert counting.since() == 2
    assert changes == (3, 1, 2, 5)
    assert same(index, model, folder)
    assert index.search(folder / "moved.png", 1)[0].path.endswith("moved.png")


def test_a_change_within_the_clocks_grain_is_seen(
    folder: Path, tmp_path: Path, counting: Counting, picture: Any
) -> None:
    """Same size, same time: a file that was young when it was read is read again."""
    path = tmp_path / "an.index"
    young = folder / "young.bmp"
    picture(1).save(young)
    stat = young.stat()
    Index.update(path, counting.model, folder)
    picture(2).save(young)
    os.utime(young, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert young.stat().st_size == stat.st_size and young.stat().st_mtime_ns == stat.st_mtime_ns
    index, changes = Index.update(path, counting.model, folder)
    assert changes.changed == 1 and same(index, counting.model, folder)


def test_unreadable_files_are_left_out_and_come_back(folder: Path, tmp_path: Path, model: Any, picture: Any) -> None:
    path = tmp_path / "an.index"
    good = (folder / "2.png").read_bytes()
    Index.update(path, model, folder)
    (folder / "2.png").write_bytes(b"no picture")
    index, changes = Index.update(path, model, folder)
    assert changes == (0, 0, 1, 7) and len(index.skipped) == 1 and "2.png" in index.skipped[0]
    (folder / "2.png").write_bytes(good)
    index, changes = Index.update(path, model, folder)
    assert changes == (1, 0, 0, 7) and not index.skipped and same(index, model, folder)


def test_a_second_writer_is_told_to_wait(folder: Path, tmp_path: Path, model: Any) -> None:
    path = tmp_path / "an.index"
    index, _ = Index.update(path, model, folder)
    with exclusive(path):
        for write in (lambda: Index.update(path, model, folder), lambda: index.save(path)):
            with pytest.raises(ClipkitError, match="another process is writing"):
                write()
        assert len(Index.open(path, model)) == 8, "readers do not wait"
    Index.update(path, model, folder)


def test_a_second_writer_waits_if_told_to(folder: Path, tmp_path: Path, counting: Counting, picture: Any) -> None:
    path, model = tmp_path / "an.index", counting.model
    Index.update(path, model, folder)
    counting.since()
    waiting = threading.Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        waiting.set()

    first = filelock.FileLock(path / LOCK)
    with ThreadPoolExecutor(1) as pool:
        first.acquire()
        try:
            second = pool.submit(Index.update, path, model, folder, None, wait=60, say=say)
            assert waiting.wait(30) and not second.done()
            with pytest.raises(ClipkitError, match="writing this index for more than 0 s"):
                Index.update(path, model, folder, wait=0.01)
            (folder / "2.png").unlink()
            put(picture, 60, folder / "60.png")
        finally:
            first.release()
        index, changes = second.result(60)
    assert changes == (1, 0, 1, 7) and len(index) == 8 and counting.since() == 1, "the folder as it is after the wait"
    assert len(said) == 1 and "waiting" in said[0]


def test_another_model_is_refused_before_anything_is_encoded(
    folder: Path, tmp_path: Path, model: Any, sigmoid_model: Any
) -> None:
    path = tmp_path / "an.index"
    Index.update(path, model, folder)
    with pytest.raises(ClipkitError, match="clipkit index --rebuild"):
        Index.update(path, sigmoid_model, folder)
    assert len(Index.open(path, model)) == 8
    assert len(Index.update(path, sigmoid_model, folder, rebuild=True)[0]) == 8
    assert same(Index.open(path, sigmoid_model), sigmoid_model, folder)


@pytest.mark.parametrize("damage", ["none", "model", "embeddings", "faiss"])
def test_rebuilding_keeps_what_was_given(folder: Path, tmp_path: Path, model: Any, damage: str) -> None:
    pytest.importorskip("faiss")
    path = tmp_path / "an.index"
    captions = {"0.png": ["a bird", "two dogs"], "deep/3.png": ["a bird"]}
    Index.update(path, model, folder, captions=captions, backend="faiss")
    header = json.loads((path / HEADER).read_text())
    if damage == "model":
        (path / HEADER).write_text(json.dumps({**header, "fingerprint": "of another"}))
    elif damage == "embeddings":
        (path / header["embeddings"]).write_bytes(b"")
    elif damage == "faiss":
        (path / header["searches"]["pictures"]["file"]).write_bytes(b"no index")
    if damage != "none":
        with pytest.raises(ClipkitError, match="clipkit index --rebuild"):
            Index.update(path, model, folder)
    index, changes = Index.update(path, model, folder, rebuild=True)
    assert {i.key: list(i.captions) for i in index.items if i.captions} == captions
    assert index.caption_embeddings is not None and len(index.caption_embeddings) == 3
    assert index.searches["pictures"]["backend"] == "faiss" and changes.added == 8 and not index.skipped


def test_captions_that_cannot_be_rebuilt_are_named(folder: Path, tmp_path: Path, model: Any) -> None:
    path = tmp_path / "an.index"
    Index.update(path, model, folder, captions={"0.png": ["a bird"]})
    (path / json.loads((path / HEADER).read_text())["items"]).write_bytes(b"")
    index, _ = Index.update(path, model, folder, rebuild=True)
    assert len(index) == 8 and index.caption_embeddings is None
    assert index.skipped == [f"the captions of {path}, which cannot be read; give --captions again"]
    Index.update(path, model, folder, captions={"0.png": ["a bird"]})
    assert Index.update(path, model, folder, rebuild=True)[0].skipped == []


def test_what_a_killed_writer_left_is_cleared_away(folder: Path, tmp_path: Path, model: Any, picture: Any) -> None:
    path = tmp_path / "an.index"
    Index.update(path, model, folder)
    for name in (".embeddings-0123456789ab.npy.abcd_123.tmp", ".index.json.abcd_123.tmp", "faiss-0123456789ab.index"):
        (path / name).write_bytes(b"half")
    put(picture, 60, folder / "60.png")
    Index.update(path, model, folder)
    assert not list(path.glob(".*.tmp")) and not list(path.glob("faiss-*")) and len(Index.open(path, model)) == 9


def test_a_name_that_is_no_text_is_left_out(folder: Path, tmp_path: Path, model: Any) -> None:
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes((folder / "0.png").read_bytes())
    index, _ = Index.update(tmp_path / "an.index", model, folder)
    assert len(index) == 8 and len(index.skipped) == 1
    assert index.skipped[0].endswith(r"caf\xe9.png: its name is not UTF-8; rename it")


def test_nothing_is_lost_by_an_empty_folder_or_another_ones_files(folder: Path, tmp_path: Path, model: Any) -> None:
    path = tmp_path / "an.index"
    Index.update(path, model, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipkitError, match="no picture in it"):
        Index.update(path, model, tmp_path / "empty")
    assert len(Index.open(path, model)) == 8
    with pytest.raises(ClipkitError, match="is no index"):
        Index.update(folder, model, folder)


def test_captions_follow_their_pictures(folder: Path, tmp_path: Path, counting: Counting, monkeypatch: Any) -> None:
    """New captions alone are encoded; without a table, pictures keep theirs, whatever else changes."""
    texts: list[str] = []
    path, model = tmp_path / "an.index", counting.model
    real = type(model).encode_text
    monkeypatch.setattr(type(model), "encode_text", lambda own, t, **k: (texts.extend(t), real(own, t, **k))[1])

    def embeddings_are_right(index: Index) -> None:
        told = [text for item in index.items for text in item.captions]
        np.testing.assert_allclose(index.caption_embeddings, real(model, told), atol=1e-6)

    Index.update(path, model, folder)
    counting.since()
    captions = {"0.png": ["a bird", "two dogs"], "deep/3.png": ["a bird"]}
    index, changes = Index.update(path, model, folder, captions=captions)
    assert texts == ["a bird", "two dogs"] and changes == (0, 0, 0, 8) and counting.since() == 0
    assert {i.key: i.captions for i in index.items if i.captions} == {k: tuple(v) for k, v in captions.items()}
    embeddings_are_right(index)

    (folder / "2.png").unlink()
    os.utime(folder / "0.png")
    index, _ = Index.update(path, model, folder)
    assert {i.key: i.captions for i in index.items if i.captions} == {k: tuple(v) for k, v in captions.items()}
    embeddings_are_right(index)

    texts.clear()
    index, _ = Index.update(path, model, folder, captions={"4.png": ["two dogs", "a cat"]})
    assert texts == ["a cat"] and [i.key for i in index.items if i.captions] == ["4.png"]
    embeddings_are_right(index)
    assert index.search("a cat", 5, by="caption")[0].caption == "a cat"


def test_a_stopped_update_goes_on_where_it_was(
    folder: Path, tmp_path: Path, counting: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_update, "_PART", 2)
    path = tmp_path / "an.index"

    def stop(label: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Index.update(path, counting.model, folder, stop)
    with pytest.raises(ClipkitError, match="no index there"):
        Index.open(path, counting.model)
    counting.since()
    index, changes = Index.update(path, counting.model, folder)
    assert changes.added == 8 and counting.since() <= 4
    assert same(index, counting.model, folder) and not list(path.glob("pending-*"))


_UPDATE = """
import os, sys
import clipkit
from clipkit.inference import Index, index_update
index_update._PART = 2
model = clipkit.load(sys.argv[1], device="cpu")
for _ in sys.stdin:
    child = os.fork()
    while not child:
        for folder in sys.argv[3:]:
            Index.update(sys.argv[2], model, folder)
    print(child, flush=True)
    os.waitpid(child, 0)
    print("gone", flush=True)
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_leaves_an_index(
    folder: Path, tmp_path: Path, transformers_clip: Path, picture: Any
) -> None:
    """A process that goes back and forth between two folders is killed again and again: the index is one of them.

    Each is forked from one that has loaded the model, as loading takes longer than all the rest.
    """
    import clipkit

    model = clipkit.load(transformers_clip, device="cpu")
    other = tmp_path / "other"
    other.mkdir()
    for i in range(50, 55):
        put(picture, i, other / f"{i}.png")
    path = tmp_path / "an.index"
    Index.update(path, model, folder)
    seen = set()
    command = [sys.executable, "-c", _UPDATE, str(transformers_clip), str(path), str(folder), str(other)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin and process.stdout
        for delay in np.linspace(0.05, 1.5, 24):
            process.stdin.write("\n")
            process.stdin.flush()
            child = int(process.stdout.readline())
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
            assert process.stdout.readline() == "gone\n"
            index = Index.open(path, model)
            seen.add(len(index))
            assert len(index) in (5, 8)
            root = other if len(index) == 5 else folder
            assert {item.path for item in index.items} == {str(p) for p in root.rglob("*.png")}
    assert len(seen) == 2, "always killed at the same place"
    index, _ = Index.update(path, model, folder)
    assert same(index, model, folder)
