"""Filters hide and bring back without touching a tar; the card says what is there, what is not, and why."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_prep_helpers import picture, tree
from PIL import Image

from clipkit.errors import ClipkitError
from clipkit.pairs.shards import open_shards
from data_prep import PlanRule, Record, SplitRule, language, write_shards
from data_prep.card import plain_reason, statistics, write_card
from data_prep.filtering import main
from data_prep.filters import Filters, apply_filters
from data_prep.records import Skipped
from data_prep.scores import read_scores, words


def data_set(out: Path, languages: bool = False) -> Path:
    given = [
        Record("plain", picture(0, (60, 40)), ("a plain picture of a dog", "a dog"), {"label": "dog"}),
        Record("wide", picture(1, (100, 20)), ("a very wide picture of a cat",), {"label": "cat"}),
        Record("short", picture(2, (60, 40)), ("dog",), {"label": "dog"}),
        Record("copy", picture(0, (60, 40)), ("the same picture once more",)),
        Record("large", picture(3, (300, 200)), ("ein Hund läuft durch den tiefen Schnee im Wald",)),
        Record("bad", b"no picture", ("c",)),
    ]
    skipped = [Skipped("t.csv row 3", "no picture is named", row=True)]
    write_shards(
        given, out, 3, rule=PlanRule(SplitRule(), "exact"), skipped=skipped, languages=languages, source="x|`y"
    )
    return out


def seen(out: Path) -> list[str]:
    return [sample.key for sample in open_shards(out / "train")]


@pytest.mark.parametrize(
    ("filters", "hidden"),
    [
        (Filters(min_side=40), {"wide"}),
        (Filters(min_side=41), {"plain", "wide", "short", "copy"}),
        (Filters(max_aspect=2), {"wide"}),
        (Filters(min_words=2), {"short"}),
        (Filters(min_words=3), {"short", "plain"}),
        (Filters(max_words=6), {"wide", "large"}),
        (Filters(hide_copies=True), {"copy"}),
        (Filters(min_side=40, min_words=2), {"wide", "short"}),
    ],
)
def test_each_threshold(tmp_path: Path, filters: Filters, hidden: set[str]) -> None:
    out = data_set(tmp_path / "d")
    everyone = seen(out)
    tars = {name: data for name, data in tree(out).items() if name.endswith(".tar")}
    report = apply_filters(out, filters)
    assert set(everyone) - set(seen(out)) == hidden
    assert report is not None and report["splits"]["train"]["kept"] == len(everyone) - len(hidden)
    apply_filters(out, Filters())
    assert seen(out) == everyone and not list(out.rglob("*.keep.npz"))
    assert {name: data for name, data in tree(out).items() if name.endswith(".tar")} == tars


def test_a_copy_stays_where_the_first_of_its_set_is_hidden(tmp_path: Path) -> None:
    """A small picture is listed first and its original, of the next shard, second."""
    image = Image.open(io.BytesIO(picture(0, (300, 300)))).resize((30, 30)).resize((300, 300), Image.Resampling.BICUBIC)
    files = [io.BytesIO() for _ in range(2)]
    image.resize((60, 60)).save(files[0], "PNG")
    image.save(files[1], "PNG")
    (small, large), other = (file.getvalue() for file in files), picture(1, (300, 300))
    given = [("small", small), ("other", other), ("large", large), ("again", large)]
    write_shards([Record(key, data, ("c",)) for key, data in given], tmp_path, 2, rule=PlanRule(SplitRule(), "near"))
    apply_filters(tmp_path, Filters(hide_copies=True))
    assert seen(tmp_path) == ["small", "other"]
    report = apply_filters(tmp_path, Filters(min_side=100, hide_copies=True))
    assert seen(tmp_path) == ["other", "large"]
    counts = {"samples": 4, "kept": 2, "min_side": 1, "hide_copies": 2}
    assert report is not None and report["splits"]["train"] == counts
    filters = statistics(tmp_path)["filters"]
    assert filters is not None and filters["splits"]["train"] == {"hidden": 2, "min_side": 1, "hide_copies": 2}
    apply_filters(tmp_path, Filters(min_side=30, hide_copies=True))
    assert seen(tmp_path) == ["small", "other"]


def test_languages(tmp_path: Path) -> None:
    out = data_set(tmp_path / "d")
    with pytest.raises(ClipkitError, match="nobody looked at the languages"):
        apply_filters(out, Filters(languages=("en",)))
    pytest.importorskip("py3langid", reason="py3langid is not installed: pip install clipkit[prepare]")
    out = data_set(tmp_path / "e", languages=True)
    apply_filters(out, Filters(languages=("en",)))
    assert "large" not in seen(out) and "plain" in seen(out) and "short" in seen(out)  # dog alone is undetermined
    assert language.language_of(["犬が雪の中を走っています"]) == "ja" and language.language_of(["ok"]) == "und"


def test_words() -> None:
    assert [words(c) for c in ("a dog .", "", "…", "two-tone", "犬が走る", "a 犬")] == [2, 0, 0, 1, 4, 2]


def test_filters_that_hide_everything_change_nothing(tmp_path: Path) -> None:
    out = data_set(tmp_path / "d")
    apply_filters(out, Filters(min_words=2))
    with pytest.raises(ClipkitError, match="hide all 5 samples of train; loosen them"):
        apply_filters(out, Filters(min_side=1000))
    assert "short" not in seen(out) and len(seen(out)) == 4


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = data_set(tmp_path / "d")
    assert main([str(out), "--min-words", "2", "--hide-copies"]) == 0
    assert capsys.readouterr().out == "train: 3 of 5 samples stay (hidden: 1 by min_words, 1 by hide_copies)\n"
    assert "min_words 2" in (out / "data_card.md").read_text()
    assert main([str(out)]) == 0 and len(seen(out)) == 5
    for arguments, message in (
        ([str(tmp_path / "x")], "no such folder"),
        ([str(tmp_path)], "no dataset.json"),
        ([str(out), "--min-side", "0"], "--min-side 0"),
        ([str(out), "--min-clip-score", "0.2"], "no model scored these captions; pass --clip-model"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1


def test_scores_are_a_table_for_everybody(tmp_path: Path) -> None:
    out = data_set(tmp_path / "d")
    table = pq.read_table(out / "train" / "000000.tar.scores.parquet").to_pylist()
    assert [row["key"] for row in table] == ["plain", "wide", "short"]
    assert table[1]["width"] == 100 and table[0]["shortest_words"] == 2 and table[0]["longest_words"] == 6
    (out / "train" / "000000.tar.scores.parquet").write_bytes(b"junk")
    with pytest.raises(ClipkitError, match=r"scores.parquet: not a table of scores"):
        read_scores(out / "train" / "000000.tar")


def test_the_card(tmp_path: Path) -> None:
    out = data_set(tmp_path / "d")
    apply_filters(out, Filters(min_words=2))
    write_card(out)
    stats = json.loads((out / "stats.json").read_text())
    train = stats["splits"]["train"]
    assert (train["pictures"], train["captions"], train["copies"], train["shards"]) == (5, 6, 1, 2)
    assert train["labels"] == {"dog": 2, "cat": 1} and train["shorter_side_in_source"]["max"] == 200
    assert stats["left_out"]["total"] == 2 and stats["filters"]["splits"]["train"]["hidden"] == 1
    card = (out / "data_card.md").read_text()
    for said in (
        "| pictures | 5 |",
        "| copies of an earlier picture | 1 |",
        "no picture is named",
        "not a picture in a",
    ):
        assert said in card
    assert "`x|'y`" in card
    sheet = (out / "contact_sheet.jpg").read_bytes()
    assert sheet[:2] == b"\xff\xd8" and len(sheet) > 3000
    assert statistics(out) == stats


def test_reasons_are_counted_together() -> None:
    assert plain_reason("a copy of 12.jpg, which is in val") == "a copy of another, which is in val"
    assert plain_reason("9000 x 9500 pixels: refused") == plain_reason("1 x 2 pixels: refused")
