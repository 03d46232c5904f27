"""Sentence embeddings: does their cosine order pairs of sentences as people do?"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipkit.errors import ClipkitError
from clipkit.evaluation.arrays import as_numpy, unit_rows
from clipkit.evaluation.intervals import LEVEL, Interval, check_draws

# Names of the three columns in the data sets that people have, the plain ones first.
_FIRST = ("sentence1", "sentence_1", "sentence_a", "sentence1_text", "text1", "text_a", "s1")
_SECOND = ("sentence2", "sentence_2", "sentence_b", "sentence2_text", "text2", "text_b", "s2")
_SCORE = ("score", "similarity_score", "similarity", "relatedness_score", "gold_score", "gold", "label")
_OFFICIAL = (5, 6, 4)  # genre, file, year, id, score, sentence, sentence: the STS benchmark's own files
_DRAWN = 1_000_000  # pairs × draws held at once


@dataclass(frozen=True)
class SentencePairs:
    """Pairs of sentences with the similarity that people gave them; scores are float64 (N,), on any scale."""

    first: list[str]
    second: list[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.first)


@dataclass(frozen=True)
class StsReport:
    """Spearman's correlation of cosine and score with a 95 % interval over pairs; as a number from -1 to 1."""

    spearman: Interval
    n_pairs: int
    protocol: str

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON."""
        return {
            "kind": "sts",
            "spearman": self.spearman.to_dict(),
            "n_pairs": self.n_pairs,
            "protocol": self.protocol,
        }

    def __str__(self) -> str:
        s = self.spearman
        reach = "" if math.isnan(s.low) else f" [{s.low:.3f}, {s.high:.3f}]"
        return f"Spearman correlation {s.value:.3f}{reach}; {self.n_pairs:,} pairs of sentences"


def sts(first_ND: Any, second_ND: Any, scores_N: Any, bootstrap: int = 1000, seed: int = 0) -> StsReport:
    """Spearman's rank correlation between the cosine of two sentences and the score that people gave them (the pairs:
    Agirre et al. 2012, SemEval-2012 Task 6; by ranks: Reimers et al. 2016, Task-Oriented Intrinsic Evaluation of
    Semantic Textual Similarity).

    Args:
        first_ND, second_ND: unit-norm embeddings of the pairs' sentences.
        scores_N: (N,) real numbers on any scale, higher for more alike; at least two different ones.
        bootstrap, seed: draws of the interval, in which whole pairs are drawn and ranked anew; 0 for none.

    Equal values get the mean of their ranks. Where all cosines are equal, the embeddings order nothing and the
    correlation, which has no definition there, is given as 0.

    Raises:
        ClipkitError: embeddings that are not unit-norm or of other shapes, or scores that are not numbers or all equal.
    """
    first_ND, second_ND = unit_rows("first_ND", first_ND), unit_rows("second_ND", second_ND)
    if first_ND.shape != second_ND.shape:
        raise ClipkitError(f"first_ND has shape {first_ND.shape} and second_ND {second_ND.shape}: pass pairs of rows")
    scores = as_numpy(scores_N)
    if scores.shape != (len(first_ND),) or scores.dtype.kind not in "fiub":
        raise ClipkitError(f"scores_N is {scores.dtype} {scores.shape}: it needs ({len(first_ND)},) real numbers")
    scores = scores.astype(np.float64)
    if not np.isfinite(scores).all():
        raise ClipkitError(f"scores_N[{np.flatnonzero(~np.isfinite(scores))[0]}] is not finite: leave that pair out")
    if (scores == scores[0]).all():
        raise ClipkitError(f"all {len(scores)} scores are {scores[0]:g}: there is no order to compare with")
    bootstrap = check_draws(bootstrap)
    first, second = first_ND.astype(np.float64), second_ND.astype(np.float64)
    products = np.einsum("nd,nd->n", first, second)
    # over norms of float64: in float32 they are 1 to seven digits, and equal embeddings would not tie
    norms = [np.sqrt(np.einsum("nd,nd->n", x, x)) for x in (first, second)]
    cosines = (products / (norms[0] * norms[1])).round(12)

    value = float(_spearman(cosines[None], scores[None])[0])
    protocol = f"Spearman's correlation of cosine and score over {len(scores):,} pairs, ties by mean rank"
    if not bootstrap:
        return StsReport(Interval(value), len(scores), protocol)
    rng = np.random.default_rng(seed)
    order = np.lexsort((scores, cosines))  # the interval does not depend on the order of the pairs
    cosines, scores = cosines[order], scores[order]
    step = max(1, _DRAWN // len(scores))
    draws = []
    for start in range(0, bootstrap, step):
        rows = rng.integers(0, len(scores), (min(step, bootstrap - start), len(scores)))
        draws.append(_spearman(cosines[rows], scores[rows]))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(draws), [tail, 1 - tail])
    protocol += f"; 95 % percentile bootstrap over pairs, {bootstrap:,} draws, seed {seed}"
    return StsReport(Interval(value, float(low), float(high)), len(scores), protocol)


def _spearman(x_BN: np.ndarray, y_BN: np.ndarray) -> np.ndarray:
    """Pearson's correlation of the rows' mean ranks, (B,); 0 where one side is constant."""
    from scipy.stats import rankdata

    rank_x, rank_y = (rankdata(values, axis=1) for values in (x_BN, y_BN))
    rank_x, rank_y = (ranks - (ranks.shape[1] + 1) / 2 for ranks in (rank_x, rank_y))
    scale = np.sqrt((rank_x**2).sum(1) * (rank_y**2).sum(1))
    return np.divide((rank_x * rank_y).sum(1), scale, out=np.zeros(len(scale)), where=scale > 0)


def read_sentence_pairs(path: str | Path) -> SentencePairs:
    """Pairs and their scores from a CSV, TSV or JSONL file in UTF-8.

    The columns are called sentence1, sentence2 and score, or as the usual data sets call them (sentence_A, text1,
    similarity_score, label, ...), in any case. A file without a header has three columns in that order, or is one of
    the STS benchmark's own (genre, file, year, id, score, sentence, sentence).

    Raises:
        ClipkitError: no such file, another format, a missing column, an empty sentence or a score that is no number;
            the message names the line.
    """
    path = Path(path)
    rows = _json_rows(path) if path.suffix.lower() in (".jsonl", ".ndjson") else _table_rows(path)
    first, second, scores = [], [], []
    for line, one, other, score in rows:
        for place, text in ((1, one), (2, other)):
            if not isinstance(text, str) or not text.strip():
                raise ClipkitError(f"{path}, line {line}: sentence {place} is empty; fill it in or leave the line out")
        try:
            number = float("" if isinstance(score, bool) else score)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise ClipkitError(f"{path}, line {line}: the score {score!r} is no number; fix it or leave the line out")
        first.append(one.strip())
        second.append(other.strip())
        scores.append(number)
    if len(scores) < 2:
        raise ClipkitError(f"{path}: {len(scores)} pairs of sentences; it takes at least two to compare their order")
    return SentencePairs(first, second, np.array(scores))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ClipkitError(f"{path}: not UTF-8 text; convert it first") from None
    except OSError as error:
        raise ClipkitError(f"{path}: cannot be read ({error.strerror})") from None


def _columns(path: Path, names: Sequence[str], known: str) -> tuple[str, str, str]:
    """The three names among ``names``, in any case."""
    lower = {name.strip().lower(): name for name in names if isinstance(name, str)}
    found = [next((lower[n] for n in choices if n in lower), None) for choices in (_FIRST, _SECOND, _SCORE)]
    for name, what in zip(found, ("sentence1", "sentence2", "score"), strict=True):
        if name is None:
            raise ClipkitError(f"{path}: no {known} called {what}; there are {', '.join(map(str, names))}")
    return found[0], found[1], found[2]  # type: ignore[return-value]


def _json_rows(path: Path) -> Iterator[tuple[int, Any, Any, Any]]:
    names: tuple[str, str, str] | None = None
    for line, text in enumerate(_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except ValueError:
            raise ClipkitError(f"{path}, line {line}: no JSON; each line is one object") from None
        if not isinstance(entry, dict):
            raise ClipkitError(f"{path}, line {line}: a {type(entry).__name__}; each line is one object")
        if names is None or any(name not in entry for name in names):
            names = _columns(path, list(entry), f"field (line {line})")
        yield line, *(entry[name] for name in names)


def _table_rows(path: Path) -> Iterator[tuple[int, Any, Any, Any]]:
    text = _text(path)
    heading = text.split("\n", 1)[0]
    tabs = path.suffix.lower() == ".tsv" or "\t" in heading  # the STS benchmark's .csv files are separated by tabs
    if tabs:  # a quotation mark is part of a sentence there, as nobody needs to quote a comma
        lines = [(i, row.rstrip("\r").split("\t")) for i, row in enumerate(text.split("\n"), 1)]
        table = [(i, [_unquoted(cell) for cell in row]) for i, row in lines if any(cell.strip() for cell in row)]
    else:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=";" if _semicolons(heading) else ",")
        try:
            table = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
        except csv.Error as error:
            raise ClipkitError(f"{path}, line {reader.line_num}: no CSV ({error})") from None
    if not table:
        raise ClipkitError(f"{path}: nothing in it; expected lines with two sentences and a score")
    places = _places(table[0][1])
    if places is None:
        names = [cell.strip() for cell in table[0][1]]
        places = tuple(names.index(name.strip()) for name in _columns(path, names, "column"))
        table = table[1:]
    for line, row in table:
        if len(row) <= max(places):
            raise ClipkitError(f"{path}, line {line}: {len(row)} columns; expected at least {max(places) + 1}")
        yield line, *(row[place] for place in places)  # type: ignore[misc]


def _places(row: list[str]) -> tuple[int, ...] | None:
    """Where the sentences and the score are in a file whose first row is no header but has a number for a score."""
    for places in (_OFFICIAL, (0, 1, 2)):
        if len(row) > max(places) and (places == _OFFICIAL or len(row) == 3) and _is_number(row[places[2]]):
            return places
    return None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _semicolons(heading: str) -> bool:
    return ";" in heading and "," not in heading


def _unquoted(cell: str) -> str:
    """A cell that a program has quoted as a whole, without its quotation marks."""
    inside = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inside.replace('""', "")
    return inside.replace('""', '"') if quoted else cell
