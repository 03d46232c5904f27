"""The report's pictures: similarities of a few pairs, and single retrievals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from clipkit.training.report.html import cosine, section

if TYPE_CHECKING:
    from clipkit.training.report import PairExample, Picture, RetrievalExample

    Encode = Callable[[Picture], str]


def heatmap(pairs: Sequence[PairExample], similarity: np.ndarray | None, encode: Encode) -> str:
    """Captions down the side, pictures along the top, cosines in the cells."""
    if not pairs or similarity is None:
        return ""
    score = np.asarray(similarity, dtype=float)
    low, high = np.nanmin(score), np.nanmax(score)
    shade = np.nan_to_num((score - low) / (high - low if high > low else 1))
    right = int((np.nanargmax(np.nan_to_num(score, nan=-2), axis=1) == np.arange(len(pairs))).sum())
    head = "".join(f'<th scope="col">{_img(encode(pair.image), pair.caption)}</th>' for pair in pairs)
    rows = ""
    for i, pair in enumerate(pairs):
        cells = ""
        for j in range(len(pairs)):
            kind = " ".join(filter(None, ["num", "hot" if shade[i, j] > 0.72 else "", "own" if i == j else ""]))
            cells += f'<td class="{kind}"><span style="--v:{shade[i, j]:.2f}">{cosine(score[i, j])}</span></td>'
        rows += f'<tr><th scope="row">{escape(pair.caption)}</th>{cells}</tr>'
    about = (
        f"<p>Cosine of {len(pairs)} captions (rows) with {len(pairs)} pictures (columns), drawn at random. "
        f"Outlined: the pairs that belong together. {right} of {len(pairs)} captions score highest with "
        "their own picture.</p>"
    )
    columns = f'<col style="width:26%"><col span="{len(pairs)}">'
    table = (
        f'<table class="heat" style="--n:{len(pairs)}"><colgroup>{columns}</colgroup>'
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )
    return section("Who belongs to whom", about, table)


def retrievals(best: Sequence[RetrievalExample], worst: Sequence[RetrievalExample], encode: Encode) -> str:
    """Pictures whose caption came first, and those whose caption came last, with what came instead."""
    if not best and not worst:
        return ""
    about = (
        "<p>The large picture was the query, the large text is the best of its own captions. Below: the "
        "captions that the model ranked highest, each with the picture it belongs to. "
        '<span class="yes">✓</span> marks its own.</p>'
    )
    body = ""
    for title, examples in (("Surest hits", best), ("Furthest misses", worst)):
        if examples:
            finds = "".join(_find(example, encode) for example in examples)
            body += f'<h3>{title}</h3><div class="finds">{finds}</div>'
    return section("What it finds", about, body)


def _find(example: RetrievalExample, encode: Encode) -> str:
    items = ""
    for found in example.retrieved:
        mark = '<span class="yes" title="its own caption">✓</span> ' if found.correct else ""
        items += (
            f"<li>{_img(encode(found.image), '')}<span>{mark}{escape(found.caption)}</span>"
            f'<span class="num soft">{cosine(found.score)}</span></li>'
        )
    verdict = "yes" if example.rank == 1 else "no"
    return (
        f'<div class="find">{_img(encode(example.image), example.caption)}<div>'
        f'<div class="rank"><span class="{verdict} num">rank {example.rank:,}</span> · '
        f'<span class="num">{cosine(example.score)}</span></div>'
        f'<p class="right">{escape(example.caption)}</p><ol>{items}</ol></div></div>'
    )


def _img(source: str, alt: str) -> str:
    if not source:
        return f'<span class="missing" role="img" aria-label="{escape(alt or "no picture")}"></span>'
    return f'<img src="{source}" alt="{escape(alt)}">'
