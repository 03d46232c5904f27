"""The index is exact, and answers only what makes sense."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.inference import Index, Item


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
