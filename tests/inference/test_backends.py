"""One suite for everything that an index can be searched with: exact, faiss, and Milvus through milvus-lite."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.inference import Index, Item, approximate
from clipkit.inference.exact import ExactSearch

NEEDS = {"exact": (), "faiss": ("faiss",), "milvus": ("pymilvus", "milvus_lite")}
N, WIDTH = 1200, 24


@pytest.fixture(scope="module", params=NEEDS)
def backend(request: pytest.FixtureRequest) -> str:
    for package in NEEDS[request.param]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'clipkit[test]'")
    return request.param


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clustered(seed: int, n: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(20, WIDTH))
    return unit(centres[draw.integers(0, 20, n)] + 0.5 * draw.normal(size=(n, WIDTH)))


@pytest.fixture(scope="module")
def saved(backend: str, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 pictures with up to three captions each, in twenty clusters."""
    items = [
        Item(f"{i}.png", f"{i}", tuple(f"{i} {c}" for c in "abc"[: i % 4]), meta={"label": f"{i % 5}"})
        for i in range(N)
    ]
    texts = clustered(2, sum(len(i.captions) for i in items))
    path = tmp_path_factory.mktemp("index") / "an.index"
    return Index(model, clustered(1, N), items, texts).save(path, backend)


@pytest.fixture(scope="module")
def index(saved: Path, model: Any, backend: str, monkeypatch_module: pytest.MonkeyPatch) -> Index:
    monkeypatch_module.setattr(approximate, "_FEW", 100)  # so that filters reach the library
    opened = Index.open(saved, model)
    assert opened.pictures.name == backend and opened.captions is not None
    assert opened.captions.vectors.name == backend
    return opened


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def reference(index: Index, queries: np.ndarray, by: str) -> np.ndarray:
    """float64 (Q, N): every item's score."""
    images = queries.astype(np.float64) @ index.embeddings.astype(np.float64).T
    texts = queries.astype(np.float64) @ np.asarray(index.caption_embeddings, dtype=np.float64).T
    best = np.full_like(images, -np.inf)
    for j, row in enumerate(index.items.owners()):
        best[:, row] = np.maximum(best[:, row], texts[:, j])
    return {"picture": images, "caption": best, "either": np.maximum(images, best)}[by]


@pytest.mark.parametrize("by", ["picture", "caption", "either"])
def test_the_nearest_are_found(index: Index, backend: str, by: Any) -> None:
    queries = clustered(3, 40)
    scores = reference(index, queries, by)
    found = index.search_all(queries, 10, by=by)
    hits = np.array([[h.row for h in of_query] for of_query in found])
    best = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    recall = np.mean([np.isin(a, b).mean() for a, b in zip(best, hits, strict=True)])
    assert recall == 1 if backend == "exact" else recall >= 0.9
    for of_query, own, row in zip(found, scores, hits, strict=True):
        assert len(set(row.tolist())) == 10
        np.testing.assert_allclose([h.score for h in of_query], own[row], atol=1e-6)
        assert [h.score for h in of_query] == sorted((h.score for h in of_query), reverse=True)


def test_one_query_and_many_agree(index: Index) -> None:
    queries = clustered(4, 5)
    assert [index.search(q, 7) for q in queries] == index.search_all(queries, 7)
    assert index.search_all([], 7) == []
    texts = ["a red bird", "two dogs"]
    assert index.search_all(texts, 3, by="caption") == [index.search(t, 3, by="caption") for t in texts]


def test_a_picture_of_the_index_finds_itself(index: Index) -> None:
    for row in (0, 17, N - 1):
        hit = index.search(index.embeddings[row], 1)[0]
        assert (hit.row, hit.key) == (row, f"{row}") and hit.score == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("where", [{"label": "3"}, {"key": "1*"}, {"key": "77"}, {"label": "[0-3]"}, {"label": "x"}])
@pytest.mark.parametrize("by", ["picture", "caption"])
def test_filters(index: Index, where: dict[str, object], by: Any) -> None:
    allowed = np.flatnonzero(index.items.matching(where))
    query = clustered(5, 1)
    own = reference(index, query, by)[0]
    for k in (1, 10, 300):
        hits = index.search(query[0], k, where=where, by=by)
        rows = [h.row for h in hits]
        there = allowed[np.isfinite(own[allowed])]
        assert len(rows) == len(set(rows)) == min(k, len(there)) and set(rows) <= set(there.tolist())
        if k == 300:
            assert np.sort(own[there])[::-1][:k][-1:] == pytest.approx(own[rows][-1:], abs=0.05)


def test_more_than_there_is(index: Index) -> None:
    query = clustered(6, 1)[0]
    rows = [h.row for h in index.search(query, 5000)]
    assert rows == np.argsort(-reference(index, query[None], "picture")[0], kind="stable").tolist()
    told = [h.row for h in index.search(query, 5000, by="caption")]
    assert len(told) == sum(bool(i.captions) for i in index.items), "an item without a caption has no score"
    assert len(index.search(query, 5000, by="either")) == N


def test_a_hit_shows_the_caption_it_was_found_by(index: Index) -> None:
    owners = index.items.owners()
    for j in (0, 5, len(owners) - 1):
        hit = index.search(np.asarray(index.caption_embeddings)[j], 1, by="caption")[0]
        assert hit.row == owners[j]
        assert hit.caption == index.items[hit.row].captions[j - int(np.searchsorted(owners, owners[j]))]
    assert index.search(index.embeddings[3], 1)[0].caption == "3 a"


def test_grouping(index: Index) -> None:
    query = clustered(8, 1)[0]
    hits = index.search(query, 5, group=0.9)
    shown = [h.row for h in hits]
    similar = index.embeddings[shown].astype(np.float64) @ index.embeddings.T.astype(np.float64) >= 0.9
    first = np.where(similar.any(axis=0), similar.argmax(axis=0), -1)
    first[shown] = -1
    assert [h.others for h in hits] == [int((first == i).sum()) for i in range(5)]
    assert sum(h.others for h in hits) > 0
    assert [h.row for h in index.search(query, 5, hide_similar=0.9)] == shown
    limited = index.search(query, 5, group=0.9, where={"label": "1"})
    assert all(h.row % 5 == 1 for h in limited) and sum(h.others for h in limited) < sum(h.others for h in hits)


def test_what_was_measured_is_kept(saved: Path, index: Index, backend: str) -> None:
    header = json.loads((saved / "index.json").read_text())
    if backend == "exact":
        assert header["searches"] == {} == index.searches
        return
    for which in ("pictures", "captions"):
        said = header["searches"][which]
        assert said["backend"] == backend and said == index.searches[which]
        assert 0.9 <= said["recall"] <= 1 and said["k"] == 10
    assert header["searches"]["pictures"]["queries"] == 200, "100 pictures and 100 captions"


def test_written_again_leaves_nothing_behind(backend: str, model: Any, tmp_path: Path) -> None:
    path = tmp_path / "an.index"
    items = [Item(f"{i}.png", f"{i}") for i in range(300)]
    before: list[str] = []
    for seed in (1, 2):
        rows = clustered(seed, 300)
        Index(model, rows, items).save(path, backend)
        opened = Index.open(path, model)
        assert opened.search(rows[5], 1)[0].row == 5
        names = [p.name for p in path.iterdir() if p.is_file() and not p.name.startswith(".")]
        assert len(names) == len(before or names) and not set(names) & set(before) - {"index.json"}
        before = names
        if backend == "milvus":
            search: Any = opened.pictures
            assert search.library.client.list_collections() == [search.library.collection]


def test_a_library_that_finds_too_few_is_helped_out(model: Any) -> None:
    class Blind:
        name, most = "blind", 1000

        def candidates(self, queries: np.ndarray, n: int, allowed: Any) -> np.ndarray:
            rows = np.full((len(queries), n), -1)
            rows[0, :3] = [5, 9, 2]
            return rows

    rows = clustered(1, 500)
    search = approximate.ApproximateSearch(rows, Blind())  # type: ignore[arg-type]
    scores, found = search.search(rows[[5, 7]], 3)
    assert sorted(found[0]) == [2, 5, 9] and found[0][0] == 5
    exact = ExactSearch(rows).search(rows[[5, 7]], 3)
    assert found[1].tolist() == exact[1][1].tolist() and scores[1].tolist() == exact[0][1].tolist()


def test_which_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"faiss"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in there else None)
    assert approximate.choose(None, 999_999) == "exact" and approximate.choose(None, 1_000_000) == "faiss"
    assert approximate.choose("exact", 10**7) == "exact" and approximate.choose("milvus", 1) == "milvus"
    there.clear()
    assert approximate.choose(None, 10**7) == "exact"
    with pytest.raises(ClipkitError, match="'fais'; there are exact, faiss, milvus"):
        approximate.choose("fais", 1)


@pytest.mark.parametrize("missing", [1, 20_000])
def test_a_disk_that_is_full_of_faiss_leaves_the_old_index(
    model: Any, tmp_path: Path, missing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its file lacks a few bytes, which faiss leaves in a buffer until it is closed, or many."""
    pytest.importorskip("faiss", reason="faiss is not installed: pip install 'clipkit[faiss]'")
    resource = pytest.importorskip("resource", reason="limits on files are of Unix")
    from clipkit.inference.with_faiss import Faiss

    items = [Item(f"{i}.png", f"{i}") for i in range(N)]
    whole = next(Index(model, clustered(1, N), items).save(tmp_path / "whole", "faiss").glob("faiss-*"))
    path = Index(model, clustered(1, N), items).save(tmp_path / "an.index")
    before = sorted(os.listdir(path))
    real, limits = Faiss.build, resource.getrlimit(resource.RLIMIT_FSIZE)

    def build(*args: Any) -> Faiss:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole.stat().st_size - missing, limits[1]))
        try:
            return real(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Faiss, "build", build)
    with pytest.raises(ClipkitError, match=r"an\.index: the index could not be written \(File too large\); free space"):
        Index(model, clustered(2, N), items).save(path, "faiss")
    assert sorted(os.listdir(path)) == before
    assert Index.open(path, model).search(clustered(1, N)[4], 1)[0].row == 4


def test_a_server_that_does_not_answer_leaves_the_old_index(model: Any, tmp_path: Path) -> None:
    pytest.importorskip("pymilvus", reason="pymilvus is not installed: pip install 'clipkit[milvus]'")
    path = tmp_path / "an.index"
    items = [Item(f"{i}.png", f"{i}") for i in range(50)]
    Index(model, clustered(1, 50), items).save(path)
    before = sorted(os.listdir(path))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ClipkitError, match="Milvus"):
        Index(model, clustered(2, 50), items).save(path, "milvus", str(tmp_path / "file" / "x.db"))
    assert sorted(os.listdir(path)) == before
    assert Index.open(path, model).search(clustered(1, 50)[4], 1)[0].row == 4
