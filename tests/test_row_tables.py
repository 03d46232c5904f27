"""Sentences and interactions in the forms that people have them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.config import Config
from clipkit.encoders import Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives import pairs_table
from clipkit.pairs.interactions import CHOSEN, Corrected, ReadItems, read_user
from clipkit.pairs.stream import PairReader
from clipkit.row_tables import open_interactions, open_sentences


def test_sentences_one_a_line(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("a dog\n\n  two   cats \n", encoding="utf-8")
    rows = open_sentences(tmp_path / "s.txt")
    assert [rows.read_captions(i) for i in range(len(rows))] == [("a dog",), ("two cats",)]
    assert rows.where(1).endswith("s.txt row 2")
    (tmp_path / "s.txt").write_text("a dog\ntwo cats\n", encoding="utf-8")
    assert open_sentences(tmp_path / "s.txt").fingerprint == rows.fingerprint, "by what they say"
    (tmp_path / "s.txt").write_text("a dog\ntwo cat\n", encoding="utf-8")
    assert open_sentences(tmp_path / "s.txt").fingerprint != rows.fingerprint


def test_sentences_end_where_lines_do(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes("a\u2028dog\rtwo\u2029cats\r\n".encode())
    rows = open_sentences(tmp_path / "s.txt")
    assert [rows.read_captions(i) for i in range(len(rows))] == [("a dog",), ("two cats",)]


def test_sentences_of_a_table(tmp_path: Path) -> None:
    (tmp_path / "s.tsv").write_text("Sentence1\tsentence2\tcontradiction\na\tb\tc\nd\t\t\n", encoding="utf-8")
    rows = open_sentences(tmp_path / "s.tsv")
    assert [rows.read_record(i) for i in range(2)] == [({"negative": "c"}, ("a", "b")), ({}, ("d",))]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "x,y\n1,2\n", "no column of sentences among x, y; pass --caption-column, or name it sentence1"),
        ("a.txt", "\n \n", "not one sentence"),
        ("a.csv", "text\n\n", "not one sentence"),
        ("a.csv", "text,text\na,b\n", "two columns are called 'text'"),
    ],
)
def test_what_is_wrong_with_sentences_is_said(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ClipkitError, match=words):
        open_sentences(tmp_path / name)
    with pytest.raises(ClipkitError, match=r"none\.csv: no such file"):
        open_sentences(tmp_path / "none.csv")


LOG = """user,item,time
ann,a,2024-01-05
ann,b,2024-01-01
ann,c,2024-01-03
ann,d,2024-01-04
ben,a,2024-01-01
ben,b,2024-01-02
cem,a,2024-01-01
cem,a,2024-01-09
cem,c,2024-01-02
cem,b,2024-01-03
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    (tmp_path / "log.csv").write_text(LOG, encoding="utf-8")
    return tmp_path / "log.csv"


def pairs_of(split: object) -> set[tuple[str, str]]:
    return {
        (split.users.names[u], split.items.names[i])  # type: ignore[attr-defined]
        for u, i in zip(split.user_N, split.item_N, strict=True)  # type: ignore[attr-defined]
    }


def test_the_last_two_of_each_user_are_held_out(log: Path) -> None:
    splits = open_interactions(Config().replace(train_data=str(log)).data)
    # cem's first a is held out with its second, and ben has none left for val
    assert pairs_of(splits["test"]) == {("ann", "a"), ("ben", "b"), ("cem", "a")}
    assert pairs_of(splits["val"]) == {("ann", "d"), ("cem", "b")}
    assert pairs_of(splits["train"]) == {("ann", "b"), ("ann", "c"), ("ben", "a"), ("cem", "c")}
    train = splits["train"]
    seen = {train.users.names[u]: {train.items.names[i] for i in items} for u, items in enumerate(train.seen)}
    assert seen == {"ann": {"b", "c"}, "ben": {"a"}, "cem": {"c"}}
    share = dict(zip(train.items.names, train.share_I, strict=True))
    assert share == {"a": 1 / 4, "b": 1 / 4, "c": 2 / 4, "d": 1 / 4}, "an item that training has not seen counts as one"


def test_features_are_joined(log: Path, tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item,kind,year\nb,book,\na,film,1999\nz,film,2000\n", encoding="utf-8")
    data = Config().replace(train_data=str(log), item_features=str(tmp_path / "items.csv")).data
    items = open_interactions(data)["train"].items
    assert items.columns == ("item", "kind", "year") and items.sizes == [5, 3, 2]
    row = {name: items.codes[i].tolist() for i, name in enumerate(items.names)}
    book, film = 1 + items.values[1].index("book"), 1 + items.values[1].index("film")
    assert row["a"][1:] == [film, 1] and row["b"][1:] == [book, 0] and row["c"][1:] == [0, 0]
    (tmp_path / "items.csv").write_text("thing,kind\nb,book\n", encoding="utf-8")
    with pytest.raises(ClipkitError, match=r"--item-features .*no column 'item' to join on; there are thing, kind"):
        open_interactions(data)
    (tmp_path / "items.csv").write_text("item,kind\nB,book\n", encoding="utf-8")
    with pytest.raises(ClipkitError, match=r"--item-features .*as 'B' is not 'b'"):
        open_interactions(data)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet", "float parquet"])
def test_an_id_is_the_same_in_every_form_and_zero_is_one(form: str, tmp_path: Path) -> None:
    """A column of whole numbers with a gap comes as floats out of parquet; the row with the gap is left out."""
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [(user, item) for user in range(4) for item in range(user, user + 5)]
    path = tmp_path / f"log.{form.split()[-1]}"
    if form == "csv":
        path.write_text("user,item\n" + "".join(f"{u},{i}\n" for u, i in rows))
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"user": u, "item": i}) + "\n" for u, i in rows))
    else:
        users = [u for u, _ in rows] if form == "parquet" else [float(u) for u, _ in rows]
        table = pa.table({"user": [*users, None], "item": [*(i for _, i in rows), 0]})
        pq.write_table(table, path)
    (tmp_path / "users.csv").write_text("user,kind\n" + "".join(f"{u},k{u}\n" for u in range(4)))
    data = Config().replace(train_data=str(path), user_features=str(tmp_path / "users.csv")).data
    if "parquet" in form:
        with pytest.warns(UserWarning, match="1 rows without user or item are left out"):
            splits = open_interactions(data)
    else:
        splits = open_interactions(data)
    assert splits["train"].users.names == ("0", "1", "2", "3") and len(splits["train"].items.names) == 8
    assert (splits["train"].users.codes[:, 1] > 0).all(), "features are joined"
    assert pairs_of(splits["test"]) == {(str(u), str(u + 4)) for u in range(4)}


def test_what_a_user_chose_before_the_test_item_is_no_candidate_of_the_test(log: Path) -> None:
    splits = open_interactions(Config().replace(train_data=str(log)).data)
    for name, ann in (("val", {"b", "c"}), ("test", {"b", "c", "d"})):
        split = splits[name]
        seen = split.seen[split.users.names.index("ann")]
        assert {split.items.names[i] for i in seen} == ann


def test_the_column_of_sentences_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("title,sentence2\na,b\n", encoding="utf-8")
    assert open_sentences(tmp_path / "s.csv", column="title").read_captions(0) == ("a", "b")
    with pytest.raises(ClipkitError, match=r"--caption-column name: no such column; there are title, sentence2"):
        open_sentences(tmp_path / "s.csv", column="name")


def test_a_batch_is_corrected_for_popularity_and_accidental_hits(log: Path) -> None:
    train = open_interactions(Config().replace(train_data=str(log)).data)["train"]
    batch = PairReader(train, read_user, ReadItems(train), 0, finish=Corrected(train))([(0, i) for i in range(4)])
    assert batch.images is not None and batch.texts is not None and batch.text_shift is not None
    names = [(train.users.names[u], train.items.names[i]) for u, i in zip(train.user_N, train.item_N, strict=True)]
    assert [train.users.names[u - 1] for u in batch.images[:, 0].tolist()] == [user for user, _ in names]
    assert [train.items.names[i - 1] for i in batch.texts[:, 0].tolist()] == [item for _, item in names]
    expected = [-np.log({"a": 0.25, "b": 0.25, "c": 0.5}[item]) for _, item in names]
    torch.testing.assert_close(batch.text_shift, torch.tensor(expected).float())

    unit = torch.nn.functional.normalize(torch.randn(4, 4), dim=1)
    (table,) = pairs_table(Embeddings(unit, unit, torch.zeros(1), None), batch)
    for i, (user, item) in enumerate(names):
        for j, (other, thing) in enumerate(names):
            assert bool(table.positives()[i, j]) == (i == j)
            chosen = thing in {its for name, its in names if name == user}
            assert bool(table.counts()[i, j]) == (i == j or not chosen), (user, item, other, thing)


def test_an_own_item_is_no_negative_however_many_the_user_has(tmp_path: Path) -> None:
    """Of ann's items the rare one is not among the most popular that are kept for her."""
    popular = [f"i{i}" for i in range(CHOSEN + 6)]
    rows = [(user, item) for item in popular for user in ("ann", "ben", "cem")]
    rows = [("ann", "rare"), ("dan", "rare"), *rows, *[("dan", item) for item in popular[:2]]]
    path = tmp_path / "log.csv"
    path.write_text("user,item\n" + "".join(f"{user},{item}\n" for user, item in rows), encoding="utf-8")
    train = open_interactions(Config().replace(train_data=str(path)).data)["train"]
    ann, rare = train.users.names.index("ann"), train.items.names.index("rare")
    assert len(train.seen[ann]) > CHOSEN and rare in train.seen[ann]
    samples = np.flatnonzero(train.item_N == rare)
    assert [train.users.names[u] for u in train.user_N[samples]] == ["ann", "dan"]
    batch = PairReader(train, read_user, ReadItems(train), 0, finish=Corrected(train))([(0, int(i)) for i in samples])
    unit = torch.nn.functional.normalize(torch.randn(2, 4), dim=1)
    (table,) = pairs_table(Embeddings(unit, unit, torch.zeros(1), None), batch)
    assert table.counts().tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "no column of users; there are a, b: pass --user-column"),
        ("user,item\n,\n", "not one row with both"),
        ("user,item,time\nu,i,soon\n", "time of user u and item i is 'soon'; expected a number or a date"),
        ("user,item,time\nu,i,1\nu,k,nan\n", "time of user u and item k is 'nan'"),
        ("user,item,time\nu,i,1\nu,k,\n", "time of user u and item k is ''.*--time-column"),
    ],
)
def test_what_is_wrong_with_interactions_is_said(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ClipkitError, match=words):
        open_interactions(Config().replace(train_data=str(tmp_path / "log.csv")).data)
