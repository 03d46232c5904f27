"""The table of items: what goes in comes out, stretch by stretch, and filters are those of ``fnmatch``."""

from __future__ import annotations

import json
import threading
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.inference import Item, items
from clipkit.inference.items import Items, shard_items
from clipkit.pairs import open_shards


def make(n: int) -> list[Item]:
    return [
        Item(
            f"/pictures/{i % 7}/é {i}.jpg", f"{i}.jpg", tuple(f"caption {c} of {i}" for c in range(i % 3)), i, 10 * i,
            f"{i:032x}", 10**18 + i, {"label": f"l{i % 4}", "n": f"{i}"} if i % 5 else {},
        )
        for i in range(n)
    ]  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Items:
    """A thousand items in a file of many stretches, of which few are remembered."""
    monkeypatch.setattr(items, "_STRETCH", 64)
    monkeypatch.setattr(items, "_KEPT", 3)
    with open(tmp_path / "items.parquet", "wb") as file:
        Items.of(make(1000)).save(file)
    return Items.open(tmp_path / "items.parquet")


def test_what_goes_in_comes_out(opened: Items, tmp_path: Path) -> None:
    wanted = make(1000)
    assert len(opened) == 1000 and list(opened) == wanted and opened == Items.of(wanted)
    for row in (0, 63, 64, 999, -1, -1000):
        assert opened[row] == wanted[row]
    assert list(opened[60:70]) == wanted[60:70] and list(opened[::-300]) == wanted[::-300]
    with pytest.raises(IndexError):
        opened[1000]
    assert opened != Items.of([*wanted[:-1], wanted[0]]) and opened != Items.of(wanted[:-1])
    with open(tmp_path / "again.parquet", "wb") as file:
        opened.save(file)
    assert Items.open(tmp_path / "again.parquet") == opened
    assert list(Items.of([])) == []


def test_half_an_emoji_is_kept_as_one_strange_character(tmp_path: Path, write_tar: Any) -> None:
    """JSON may hold it in any text; names of files and keys stay what they are."""
    (tmp_path / "caf\udce9.png").write_bytes(b"png")
    record = {"captions": ["a\ud83d", "b \ud83d\ude00"], "label": "x\ud83d", "n\ud83d": 1, "file": "caf\udce9.png"}
    members = [("caf\udce9.json", json.dumps(record).encode()), ("caf\udce9.png", b"png")]
    shards = open_shards(write_tar(tmp_path / "0.tar", members), root=tmp_path)
    found = Items.of(shard_items(shards, [0]))
    assert shards.source_file(0) is not None and found[0].path == str(tmp_path / "0.tar") and found[0].read() == b"png"
    assert found[0].captions == ("a\ufffd", "b \U0001f600")
    assert found[0].meta == {"label": "x\ufffd", "n\ufffd": "1"} and found[0].key == r"caf\xe9"
    own = Item("é.png", "é", ("a\ud83d", "b \ud83d\ude00", "é"), meta={"label\udc80": "x\ud83d"})
    assert list(Items.of([own])) == [
        Item("é.png", "é", ("a\ufffd", "b \U0001f600", "é"), meta={"label\ufffd": "x\ufffd"})
    ]
    with pytest.raises(ClipkitError, match="its name is not UTF-8; rename it"):
        Items.of([Item("caf\udce9.png", "0")])


def test_opening_reads_no_rows_and_an_item_reads_a_stretch(opened: Items, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    read: list[int] = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda s, i, **k: (read.append(i), real(s, i, **k))[1])
    monkeypatch.setattr(pq.ParquetFile, "read", None)
    assert len(opened) == 1000 and read == []
    assert opened[130].key == "130.jpg" and opened[140].key == "140.jpg" and read == [2]


def test_threads_read_it_at_once(opened: Items) -> None:
    wanted, wrong = make(1000), []

    def look(seed: int) -> None:
        for row in np.random.default_rng(seed).integers(0, 1000, 200).tolist():
            if opened[row] != wanted[row]:
                wrong.append(row)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_owners(opened: Items) -> None:
    assert opened.owners().tolist() == [i for i in range(1000) for _ in range(i % 3)]


@pytest.mark.parametrize(
    "pattern", ["12.jpg", "1*", "*7.jpg", "1?.jpg", "[12]3*", "[!12]3.jpg", "[0-3]5*", "é*", "*(1)*", "a[b", "*]*", "."]
)
def test_patterns_are_those_of_fnmatch(opened: Items, pattern: str) -> None:
    wanted = [fnmatchcase(item.key, pattern) for item in make(1000)]
    assert opened.matching({"key": pattern}).tolist() == wanted


def test_filters(opened: Items) -> None:
    wanted = make(1000)
    for where, holds in (
        ({"label": "l2"}, lambda i: i.meta.get("label") == "l2"),
        ({"label": "l*", "n": "1?"}, lambda i: i.meta and fnmatchcase(i.meta["n"], "1?")),
        ({"n": 17}, lambda i: i.meta.get("n") == "17"),
        ({"offset": 500}, lambda i: i.offset == 500),
        ({"caption": "caption 1 of *"}, lambda i: len(i.captions) > 1),
        ({"path": "/pictures/3/*", "label": "l1"}, lambda i: "/3/" in i.path and i.meta.get("label") == "l1"),
    ):
        assert opened.matching(where).tolist() == [bool(holds(i)) for i in wanted]
    with pytest.raises(ClipkitError, match=r"has a 'labl'; there are captions, content, key, label"):
        opened.matching({"labl": "x"})
    with pytest.raises(ClipkitError, match=r"\[z-a\]"):
        opened.matching({"key": "[z-a]"})
