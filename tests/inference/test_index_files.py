"""An index on the disk is whole or absent, and its folder is nobody else's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipkit
from clipkit.errors import ClipkitError
from clipkit.inference import Index, Item
from clipkit.inference import index as index_module


def filled(model: Any, n: int) -> Index:
    """An index of ``n`` embeddings whose values are all ``n``."""
    return Index(model, np.full((n, 24), n, np.float32), [Item(f"{i}.png", f"{i}") for i in range(n)])


def test_saved_and_opened_is_the_same(index: Index, model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = index.save(tmp_path / "deep" / "an.index")
    assert path.is_dir() and not list((tmp_path / "deep").glob(".*"))
    monkeypatch.setattr("pickle.load", None)
    opened = Index.open(path, model)
    assert len(opened) == 12 and opened.items == index.items
    assert opened.search("a red bird", 12) == index.search("a red bird", 12)
    assert opened.thumbnail(3, 16).size[0] <= 16
    opened.save(path)  # over itself, while it is mapped
    assert Index.open(path, model).search("a dog", 3) == index.search("a dog", 3)


def test_opened_without_a_model_finds_it(index: Index, tmp_path: Path, folder: Path, transformers_clip: Path) -> None:
    model = clipkit.load(transformers_clip, device="cpu")
    path = Index.build(model, folder).save(tmp_path / "an.index")
    assert Index.open(path).search("a bird", 3) == Index.open(path, model).search("a bird", 3)


@pytest.mark.parametrize("change", ["weights", "text", "picture", "kind"])
def test_another_model_is_refused(
    index: Index, model: Any, sigmoid_model: Any, checkpoint: Any, tmp_path: Path, change: str
) -> None:
    import dataclasses

    import torch

    path = index.save(tmp_path / "an.index")
    config, weights = checkpoint("clip", "safetensors")
    other = sigmoid_model if change == "kind" else clipkit.load(config, pretrained=weights, device="cpu")
    with torch.no_grad():
        if change == "weights":
            next(other.model.image.parameters()).add_(1e-3)
        elif change == "text":
            next(other.model.text.parameters()).add_(1e-3)
        elif change == "picture":
            other.model.picture = dataclasses.replace(other.model.picture, resize="squash")
    with pytest.raises(ClipkitError, match="clipkit index --rebuild") as caught:
        Index.open(path, other)
    assert str(path) in str(caught.value)


def test_no_index_there(model: Any, tmp_path: Path, index: Index) -> None:
    with pytest.raises(ClipkitError, match="nowhere"):
        Index.open(tmp_path / "nowhere", model)
    path = index.save(tmp_path / "an.index")
    for file in sorted(p for p in path.iterdir() if p.name != ".lock"):
        data = file.read_bytes()
        for damage in (data[: len(data) // 2], b"", b"\x00" * 100):
            file.write_bytes(damage)
            with pytest.raises(ClipkitError, match=r"an\.index"):
                Index.open(path, model)
        file.write_bytes(data)
    assert len(Index.open(path, model)) == 12


def test_a_folder_that_is_no_index_is_not_replaced(index: Index, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("mine")
    with pytest.raises(ClipkitError, match="photos"):
        index.save(tmp_path / "photos")
    (tmp_path / "a-file").write_text("mine")
    with pytest.raises(ClipkitError, match="a-file"):
        index.save(tmp_path / "a-file")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == (tmp_path / "a-file").read_text() == "mine"


@pytest.mark.parametrize("header", ['{"pages": ["a", "b"]}', "[]", "no json", None])
def test_another_programs_folder_is_not_taken_for_an_index(index: Index, tmp_path: Path, header: str | None) -> None:
    site = tmp_path / "site"
    site.mkdir()
    mine = {"captions-en.vtt": "WEBVTT", "items-2024.csv": "a,b", ".lock": "", ".draft.tmp": "half"}
    for name, text in (mine if header is None else mine | {"index.json": header}).items():
        (site / name).write_text(text)
    before = {path.name: path.read_text() for path in site.iterdir()}
    with pytest.raises(ClipkitError, match="site exists and is no index, so it is not replaced"):
        index.save(site)
    assert {path.name: path.read_text() for path in site.iterdir()} == before


def test_only_the_indexs_own_files_are_deleted(index: Index, model: Any, tmp_path: Path) -> None:
    path = index.save(tmp_path / "an.index")
    first = {file.name for file in path.iterdir()} - {"index.json", ".lock"}
    mine = {"captions-en.vtt", "items-2024.csv", ".draft.tmp", "embeddings-old.npy"}
    for name in mine:
        (path / name).write_text("mine")
    index.save(path)
    left = {file.name for file in path.iterdir()}
    assert mine <= left and not first & left
    assert len(Index.open(path, model)) == 12


@pytest.mark.parametrize("damage", [b"", b"{", b"[" * 200_000, b"\xff\xfe\xfd", None])
def test_a_damaged_or_unfinished_index_is_replaced(
    index: Index, model: Any, tmp_path: Path, damage: bytes | None
) -> None:
    path = index.save(tmp_path / "an.index")
    (path / ".lock").touch()  # as a killed writer leaves it
    if damage is None:
        (path / "index.json").unlink()
    else:
        (path / "index.json").write_bytes(damage)
    with pytest.raises(ClipkitError, match="clipkit index --rebuild"):
        Index.open(path, model)
    index.save(path)
    assert len(Index.open(path, model)) == 12


def test_an_index_that_is_replaced_while_it_is_opened(
    index: Index, model: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    """What a library searches with is of one index with the rest, however long the model takes to be known."""
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'clipkit[faiss]'")
    path = index.save(tmp_path / "an.index", "faiss")
    real, times = index_module.check_model, [0]

    def slow(*given: Any) -> None:
        real(*given)
        times[0] += 1
        if times[0] == 1:
            index.save(path, "faiss")

    monkeypatch.setattr(index_module, "check_model", slow)
    assert Index.open(path, model).search("a dog", 3) == index.search("a dog", 3) and times[0] == 2
    next(path.glob("faiss-*")).write_bytes(b"no index")
    with pytest.raises(ClipkitError, match="--rebuild"):
        Index.open(path, model)


class Killed(BaseException):
    """Stands for SIGKILL: from here on nothing that the process does reaches the disk, clean-up neither."""


def kill_after(patch: pytest.MonkeyPatch, operations: int) -> list[int]:
    """Let ``operations`` of ``save``'s operations on the disk happen, and none after them."""
    made = [0]

    def deadly(real: Any) -> Any:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if made[0] >= operations:
                raise Killed
            made[0] += 1
            return real(*args, **kwargs)

        return wrapped

    for owner, name in (
        ("numpy", "save"), ("pyarrow.parquet", "ParquetWriter"), ("os", "mkdir"), ("os", "rename"), ("os", "replace"),
        ("os", "unlink"), ("os", "remove"), ("os", "rmdir"), ("os", "symlink"), ("pathlib.Path", "write_text"),
    ):  # fmt: skip
        patch.setattr(f"{owner}.{name}", deadly(_find(owner, name)))
    return made


def _find(owner: str, name: str) -> Any:
    import importlib

    if owner == "pathlib.Path":
        return getattr(Path, name)
    return getattr(importlib.import_module(owner), name)


def test_a_killed_save_leaves_an_index(tmp_path: Path, model: Any, monkeypatch: Any) -> None:
    """Killed between any two of its operations on the disk, ``save`` leaves the old index or the new one."""
    monkeypatch.setattr("clipkit.inference.index_files.model_fingerprint", lambda model: "same")
    lost = []
    for operations in range(100):
        path = tmp_path / f"{operations}" / "an.index"
        filled(model, 3).save(path)
        with pytest.MonkeyPatch.context() as patch:
            done = kill_after(patch, operations)
            try:
                filled(model, 2).save(path)
            except Killed:
                finished = False
            else:
                finished = True
        try:
            assert len(Index.open(path, model)) in ((2,) if finished else (2, 3))
        except ClipkitError as error:
            lost.append(f"killed after {operations} operations: {error}")
        if finished:
            break
    assert finished and done[0] >= 3
    assert lost == []


def test_a_failed_save_leaves_the_old_index(index: Index, model: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path = index.save(tmp_path / "an.index")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    for owner, name in (("clipkit.inference.index.np", "save"), ("clipkit.inference.items.pq", "ParquetWriter")):
        with monkeypatch.context() as patch:
            patch.setattr(f"{owner}.{name}", full)
            with pytest.raises(ClipkitError, match=r"an\.index"):
                index.save(path)
        assert Index.open(path, model).search("a dog", 3) == index.search("a dog", 3)
    assert not list(tmp_path.glob(".*")), "nothing half stays"


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, KeyboardInterrupt])
def test_whatever_ends_a_save_nothing_half_stays(index: Index, model: Any, tmp_path: Path, error: Any) -> None:
    """At its last steps too: once the header is replaced, the files that it names stay."""
    path = index.save(tmp_path / "an.index")
    before = sorted(p.name for p in path.iterdir())

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr("clipkit.inference.index_files.build_search", fail)
        index.save(path, "faiss")
    assert sorted(p.name for p in path.iterdir()) == before
    made = [0]

    def fail_at_last(folder: Path) -> None:
        made[0] += 1
        if made[0] == 3:  # of embeddings, items and header
            raise error

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error):
        patch.setattr("clipkit.cache.sync_folder", fail_at_last)
        index.save(path)
    assert Index.open(path, model).search("a dog", 3) == index.search("a dog", 3)
