"""The index is exact, is whole or absent, and answers only for its own model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clipkit
from clipkit.errors import ClipkitError
from clipkit.inference import Index, Item
from clipkit.inference import index as index_module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, picture: Any) -> Path:
    """Twelve pictures, some in folders, and what is no picture."""
    root = tmp_path_factory.mktemp("pictures")
    for i in range(12):
        path = root / ("deep/er" if i % 3 == 0 else ".") / f"{i:02d}.{'jpg' if i % 2 else 'PNG'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(i).save(path)
    (root / "note.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def index(model: Any, folder: Path) -> Index:
    return Index.build(model, folder)


def made(model: Any, embeddings: np.ndarray) -> Index:
    """An index of given embeddings."""
    return Index(model, embeddings.astype(np.float32), [Item(f"{i}.png", f"{i}") for i in range(len(embeddings))])


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def test_build_finds_the_pictures_to_the_bottom(index: Index, folder: Path, model: Any) -> None:
    assert len(index) == 12 and index.skipped == []
    wanted = sorted(p for p in folder.rglob("*") if p.suffix in (".jpg", ".PNG"))
    assert [item.path for item in index.items] == [str(p) for p in wanted]
    np.testing.assert_allclose(index.embeddings, model.encode_image(wanted), atol=1e-6)


def test_search_is_argsort(index: Index, model: Any, folder: Path) -> None:
    queries = ["a red bird", folder / "01.jpg", Image.open(folder / "02.PNG"), model.encode_text("two dogs")]
    for query in queries:
        text = isinstance(query, str)
        encode = model.encode_text if text else model.encode_image
        vector = query if isinstance(query, np.ndarray) else encode(query)
        scores = index.embeddings @ vector
        order = np.argsort(-scores, kind="stable")
        for k in (1, 5, 11, 12, 13, 1000):
            hits = index.search(query, k)
            assert [h.row for h in hits] == order[:k].tolist()
            np.testing.assert_allclose([h.score for h in hits], scores[order[:k]], atol=1e-5)
            assert all(h.path == index.items[h.row].path and h.key == index.items[h.row].key for h in hits)
    found = index.search(folder / "01.jpg", 1)[0]
    assert Path(found.path).name == "01.jpg" and found.score == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("n", [1, 2, 100, 5000])
def test_search_is_exact_at_any_size(model: Any, n: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("clipkit.inference.exact._BLOCK", 700)  # several tiles, the last one short
    draw = np.random.default_rng(n)
    big = made(model, unit(draw.normal(size=(n, 24))))
    query = unit(draw.normal(size=24))
    scores = big.embeddings.astype(np.float64) @ query.astype(np.float64)
    for k in (1, 10, n):
        hits = big.search(query, k)
        best = np.argsort(-scores, kind="stable")[: min(k, n)]
        np.testing.assert_allclose([h.score for h in hits], scores[best], atol=1e-6)
        assert len({h.row for h in hits}) == min(k, n)
        gap = np.diff(np.sort(scores)).min() if n > 1 else 1
        if gap > 1e-6:
            assert [h.row for h in hits] == best.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_embeddings_that_are_not_finite_are_named_and_not_written(
    model: Any, tmp_path: Path, bad: float, monkeypatch: Any
) -> None:
    monkeypatch.setattr("clipkit.inference.index_files._BLOCK", 2)
    path = made(model, np.eye(5, 24)).save(tmp_path / "an.index")
    before = sorted(p.name for p in path.iterdir())
    rows = np.eye(5, 24, dtype=np.float32)
    rows[3, 2] = bad
    broken = made(model, rows)
    assert {hit.row for hit in broken.search(np.ones(24, dtype=np.float32), 5)} == {0, 1, 2, 4}
    with pytest.raises(ClipkitError, match=r"the embedding of 3 \(row 3\) holds NaN or infinity"):
        broken.save(path)
    captioned = Index(
        model, np.eye(5, 24, dtype=np.float32), [Item(f"{i}.png", f"{i}", ("a",)) for i in range(5)], rows
    )
    with pytest.raises(ClipkitError, match="the embedding of a caption of 3 holds NaN"):
        captioned.save(path)
    assert sorted(p.name for p in path.iterdir()) == before and len(Index.open(path, model)) == 5


def test_ties_go_to_the_first(model: Any) -> None:
    """Equal scores in the order of the rows, also where k cuts a tie: the same answer on every machine."""
    rows = np.zeros((300, 24))
    rows[:, 0] = 1
    rows[::3] = 0
    rows[::3, 1] = 1
    query = np.zeros(24, dtype=np.float32)
    query[0] = 1
    tied = [i for i in range(300) if i % 3]
    index = made(model, rows)
    for k in (1, 7, 100, 200):
        assert [h.row for h in index.search(query, k)] == tied[:k]
    assert [h.row for h in index.search(query, 203)] == [*tied, 0, 3, 6]


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one(index: Index, k: int) -> None:
    with pytest.raises(ClipkitError, match=f"k is {k}"):
        index.search("a bird", k)


@pytest.mark.parametrize("query", ["", "  ", Path("nowhere.jpg"), 42])
def test_queries_that_make_no_sense(index: Index, query: Any) -> None:
    with pytest.raises(ClipkitError):
        index.search(query)


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


def test_unreadable_pictures_are_listed(model: Any, picture: Any, tmp_path: Path) -> None:
    for i in range(4):
        picture(i).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "huge.jpg").touch()
    os.truncate(tmp_path / "huge.jpg", 1 << 40)  # a hole: it takes no room on the disk
    index = Index.build(model, tmp_path)
    assert [Path(i.path).name for i in index.items] == ["0.png", "2.png", "3.png"]
    assert len(index.skipped) == 3
    assert "1.png" in index.skipped[0] and "empty.jpg" in index.skipped[1]
    assert index.skipped[2].endswith("huge.jpg: 1,024.0 GiB; a picture file of more than 1 GiB is not read")
    np.testing.assert_allclose(index.embeddings[1], model.encode_image(tmp_path / "2.png"), atol=1e-6)


def test_nothing_to_index(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match="nowhere"):
        Index.build(model, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ClipkitError, match="empty"):
        Index.build(model, tmp_path / "empty")
    (tmp_path / "empty" / "a.png").write_bytes(b"no picture")
    with pytest.raises(ClipkitError, match=r"a\.png"):
        Index.build(model, tmp_path / "empty")


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


def test_a_gone_file_is_named(model: Any, picture: Any, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "0.png")
    index = Index.build(model, tmp_path)
    (tmp_path / "0.png").unlink()
    assert index.search("a bird", 1)[0].path.endswith("0.png")
    with pytest.raises(ClipkitError, match=r"0\.png"):
        index.thumbnail(0)


def test_pictures_are_found_from_anywhere(model: Any, picture: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    picture(0).save("0.png")
    Index.build(model, ".").save("an.index")
    monkeypatch.chdir("/")
    assert Index.open(tmp_path / "an.index", model).thumbnail(0).size == picture(0).size


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
        made(model, np.full((3, 24), 1)).save(path)
        with pytest.MonkeyPatch.context() as patch:
            done = kill_after(patch, operations)
            try:
                made(model, np.full((2, 24), 2)).save(path)
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


def test_credits_are_those_of_the_shards_that_the_pictures_are_in(model: Any, tmp_path: Path) -> None:
    said = ["Pictures by A, CC BY 4.0", "Pictures by B"]
    for name, text in (
        ("a", json.dumps({"license": said[0]})),
        ("b", json.dumps({"license": said[1]})),
        ("c", "not json"),
        ("d", json.dumps({"license": None})),
        ("e", "[]"),
    ):
        (tmp_path / name / "test").mkdir(parents=True)
        (tmp_path / name / "dataset.json").write_text(text)
    (tmp_path / "a" / "dataset.json").rename(tmp_path / "a" / "test" / "dataset.json")
    items = [Item(str(tmp_path / name / "test" / "0.tar"), name, (), 512, 9) for name in ("b", "a", "c", "d", "e", "a")]
    items.append(Item(str(tmp_path / "b" / "test" / "own.png"), "own"))
    rows = np.eye(len(items), dtype=np.float32)
    assert Index(model, rows, items).credits() == said
    assert Index(model, rows[-1:], items[-1:]).credits() == [], "a file of one's own, whatever lies beside it"


def test_arithmetic_of_queries(index: Index, model: Any, folder: Path) -> None:
    beach, people, photo = (
        model.encode_text("a beach"),
        model.encode_text("people"),
        model.encode_image(folder / "01.jpg"),
    )
    wanted = unit(beach + photo - people)
    hits = index.search(["a beach", folder / "01.jpg"], 12, minus="people")
    np.testing.assert_allclose([h.score for h in hits], np.sort(index.embeddings @ wanted)[::-1], atol=1e-5)
    assert index.search(["a beach"], 3) == index.search("a beach", 3)
    with pytest.raises(ClipkitError, match="nothing is left"):
        index.search("a beach", minus=["a beach"])
    with pytest.raises(ClipkitError, match="nothing to search for"):
        index.search([], minus=["a beach"])


def test_filters(model: Any) -> None:
    labels = ["bird", "fish", "bird", "", "birdhouse"]
    items = [Item(f"{i}.png", f"{i}", meta={"label": x, "n": f"{i}"} if x else {}) for i, x in enumerate(labels)]
    rows = unit(np.random.default_rng(0).normal(size=(5, model.embed_dim)))
    index = Index(model, rows, items)
    for where, wanted in (
        ({"label": "bird"}, {0, 2}), ({"label": "bird*"}, {0, 2, 4}), ({"n": 1}, {1}), ({"key": "[34]"}, {3, 4}),
        ({"label": "bird*", "key": "0"}, {0}), ({"label": "cat"}, set()),
    ):  # fmt: skip
        hits = index.search("a bird", 10, where=where)
        assert {h.row for h in hits} == wanted
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
        assert hits == [h for h in index.search("a bird", 10) if h.row in wanted]
    with pytest.raises(ClipkitError, match=r"has a 'labl'; there are .*label"):
        index.search("a bird", where={"labl": "bird"})


def test_similar_pictures_are_hidden_behind_the_best_of_them(model: Any) -> None:
    draw = np.random.default_rng(0)
    centres = unit(draw.normal(size=(6, 24)))
    rows = unit(np.repeat(centres, 50, axis=0) + 0.001 * draw.normal(size=(300, 24)))  # six bursts of fifty
    index = made(model, rows)
    query = unit(draw.normal(size=24))
    for k in (1, 3, 6, 10):
        hits = index.search(query, k, hide_similar=0.99)
        assert len(hits) == min(k, 6) and len({h.row // 50 for h in hits}) == len(hits)
        best = [max((rows[b * 50 : b * 50 + 50] @ query).max() for b in {h.row // 50}) for h in hits]
        np.testing.assert_allclose([h.score for h in hits], best, atol=1e-6)
    assert len(index.search(query, 300, hide_similar=1.1)) == 300
