"""Spearman's correlation against scipy, and the files that people keep pairs of sentences in."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from clipkit.errors import ClipkitError
from clipkit.evaluation import read_sentence_pairs, sts

MODULE = importlib.import_module("clipkit.evaluation.sts")  # the function hides its module


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def pairs(n: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = unit(rng.normal(size=(n, 6)))
    second = unit(first + rng.uniform(0, 3, (n, 1)) * rng.normal(size=(n, 6)))
    scores = np.round(5 * (first * second).sum(1) + rng.normal(size=n))  # whole numbers: many ties
    return first, second, scores


def test_equals_scipy_with_ties() -> None:
    first, second, scores = pairs()
    cosines = (first.astype(float) * second).sum(1)
    report = sts(first, second, scores)
    assert report.spearman.value == pytest.approx(stats.spearmanr(cosines, scores).statistic, abs=1e-12)
    assert report.spearman.value != pytest.approx(stats.pearsonr(cosines, scores).statistic, abs=1e-3)
    assert report.spearman.low < report.spearman.value < report.spearman.high
    assert report.n_pairs == 80 and "80 pairs" in str(report)
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["spearman"]["value"] == report.spearman.value


def test_by_hand() -> None:
    angle = np.deg2rad([0, 30, 60, 90])
    second = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    first = np.tile(np.array([[1, 0]], np.float32), (4, 1))
    assert sts(first, second, [5, 3, 2, 0], bootstrap=0).spearman.value == pytest.approx(1)
    assert sts(first, second, [0, 1, 2, 9], bootstrap=0).spearman.value == pytest.approx(-1)
    # ranks 4 3 2 1 against 3.5 3.5 2 1: covariance 4.5, deviations √5 and √4.5
    assert sts(first, second, [4, 4, 2, 1], bootstrap=0).spearman.value == pytest.approx(4.5 / (5 * 4.5) ** 0.5)
    assert sts(first, first, [5, 3, 2, 0]).spearman.value == 0, "equal cosines order nothing"


def test_sums_in_another_order_are_equal_cosines() -> None:
    rng = np.random.default_rng(0)
    one, other = unit(rng.normal(size=(1, 64))), unit(rng.normal(size=(1, 64)))
    orders = [rng.permutation(64) for _ in range(40)]
    first, second = (np.concatenate([row[:, order] for order in orders]) for row in (one, other))
    assert len(set(np.einsum("nd,nd->n", first.astype(float), second.astype(float)).tolist())) > 1
    assert sts(first, second, rng.normal(size=40), bootstrap=0).spearman.value == 0


def test_the_interval_is_the_bootstrap_s() -> None:
    first, second, scores = pairs()
    cosines = (first.astype(float) * second).sum(1)
    rng = np.random.default_rng(5)
    drawn = [stats.spearmanr(cosines[rows], scores[rows]).statistic for rows in rng.integers(0, 80, (2000, 80))]
    interval = sts(first, second, scores, bootstrap=4000).spearman
    assert [interval.low, interval.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.015)


def test_order_scale_and_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, scores = pairs()
    plain = sts(first, second, scores, bootstrap=50).spearman
    order = np.random.default_rng(1).permutation(80)
    again = sts(second[order], first[order], 3 * scores[order] - 7, bootstrap=50).spearman
    assert (again.value, again.low, again.high) == pytest.approx((plain.value, plain.low, plain.high))
    monkeypatch.setattr(MODULE, "_DRAWN", 80 * 7)
    assert sts(first, second, scores, bootstrap=50).spearman == plain


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((np.eye(3), np.eye(3), [1, 1, 1]), "all 3 scores are 1"),
        ((np.eye(3), np.eye(3), [1, 2]), "scores_N is"),
        ((np.eye(3), np.eye(3), [1, 2, np.nan]), r"scores_N\[2\]"),
        ((np.eye(3), np.eye(4)[:3], [1, 2, 3]), "second_ND"),
        ((2 * np.eye(3), np.eye(3), [1, 2, 3]), r"first_ND\[0\] has norm 2"),
    ],
)
def test_mistakes_are_named(arguments: tuple, named: str) -> None:
    with pytest.raises(ClipkitError, match=named):
        sts(*arguments)


# Files


FILES = {
    "plain.csv": 'sentence1,sentence2,score\n"A man, old.",A cat.,4.5\nTwo dogs.,"Say ""no"".",0\n',
    "semicolon.csv": 'score;sentence_A;sentence_B\r\n4.5;A man, old.;A cat.\r\n0;Two dogs.;Say "no".\r\n',
    "glue.tsv": 'index\tsentence1\tsentence2\tscore\n0\tA man, old.\tA cat.\t4.5\n1\tTwo dogs.\tSay "no".\t0.0\n',
    "quoted.tsv": 'Text1\tText2\tLabel\n"A man, old."\tA cat.\t4.5\nTwo dogs.\t"Say ""no""."\t0\n',
    "official.csv": 'main\tf\t2012\t1\t4.5\tA man, old.\tA cat.\nmain\tf\t2012\t2\t0\tTwo dogs.\tSay "no".\textra\n',
    "bare.tsv": 'A man, old.\tA cat.\t4.5\n\nTwo dogs.\tSay "no".\t0\n\n',
    "lines.jsonl": '{"sentence1": "A man, old.", "sentence2": "A cat.", "score": 4.5}\n\n'
    '{"score": "0", "sentence2": "Say \\"no\\".", "sentence1": "Two dogs."}\n',
    "marked.csv": '\ufeffsentence1,sentence2,score\n"A man, old.",A cat.,4.5\nTwo dogs.,"Say ""no"".",0\n',
}


@pytest.mark.parametrize("name", FILES)
def test_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name].encode())
    read = read_sentence_pairs(tmp_path / name)
    assert read.first == ["A man, old.", "Two dogs."]
    assert read.second == ["A cat.", 'Say "no".']
    assert read.scores.tolist() == [4.5, 0] and read.scores.dtype == np.float64 and len(read) == 2


def test_quotation_marks_inside_a_tsv_stay(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('sentence1\tsentence2\tscore\n"Go" he said "now"\t"\t1\n"Yes."\tb\t2\n')
    read = read_sentence_pairs(tmp_path / "a.tsv")
    assert read.first == ['"Go" he said "now"', "Yes."] and read.second == ['"', "b"]


@pytest.mark.parametrize(
    "name, text, named",
    [
        (
            "a.csv",
            "sentence1,sentence2,points\na,b,1\n",
            "no column called score; there are sentence1, sentence2, points",
        ),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,,2\n", "line 3: sentence 2 is empty"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,high\n", "line 3: the score 'high' is no number"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d,nan\n", "line 3: the score 'nan'"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\nc,d\n", "line 3: 2 columns"),
        ("a.csv", "sentence1,sentence2,score\na,b,1\n", "1 pairs"),
        ("a.csv", "\n", "nothing in it"),
        ("a.tsv", "a\tb\n", "no column called sentence1"),
        ("a.jsonl", '{"sentence1": "a"}\n', "no field \\(line 1\\) called sentence2"),
        ("a.jsonl", "[1]\n", "line 1: a list"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": 1}\n{"sen\n', "line 2: no JSON"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": 3, "score": 1}\n', "line 1: sentence 2"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": true}\n', "line 1: the score True"),
        ("a.jsonl", '{"sentence1": "a", "sentence2": "b", "score": null}\n', "line 1: the score None"),
    ],
)
def test_what_is_wrong_with_a_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, named: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ClipkitError, match=named) as caught:
        read_sentence_pairs(tmp_path / name)
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match=r"gone\.csv: cannot be read"):
        read_sentence_pairs(tmp_path / "gone.csv")
    (tmp_path / "latin.csv").write_bytes("sentence1,sentence2,score\né,b,1\n".encode("latin-1"))
    with pytest.raises(ClipkitError, match="not UTF-8"):
        read_sentence_pairs(tmp_path / "latin.csv")


def test_equal_embeddings_tie_though_float32_rounds_their_norms() -> None:
    rng = np.random.default_rng(0)
    first, second = (
        (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in rng.normal(size=(2, 40, 384))
    )
    same = np.arange(40) < 20
    second[same] = first[same]
    scores = np.where(same, rng.integers(3, 6, 40), rng.integers(0, 3, 40))
    exact = np.where(same, 1.0, (first.astype(np.float64) * second).sum(1))
    true = stats.spearmanr(exact, scores).statistic
    assert sts(first, second, scores, bootstrap=0).spearman.value == pytest.approx(true, abs=1e-12)
    assert sts(first, first, scores, bootstrap=0).spearman.value == 0
