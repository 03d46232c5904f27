"""Results as HTML: the similarity matrix with its matches, and probability bars. Everything from outside is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipkit.inference import Match
from demos.inputs import Picture

_SHOWN = 10  # bars of one picture; the rest is in the data


def match_html(found: Match, pictures: Sequence[Picture], captions: Sequence[str]) -> str:
    """The matrix as a heatmap with numbers, then the matches in words."""
    parts = (_matrix, _by_picture, _by_caption)
    return "".join(part(found, pictures, captions) for part in parts)


def bars_html(pictures: Sequence[Picture], best: Sequence[Sequence[tuple[str, float]]], note: str) -> str:
    """A card for each picture: its labels, best first, with probability bars.

    Args:
        best: for each picture (label, probability), best first.
        note: how the probabilities are meant.
    """
    cards = []
    for picture, row in zip(pictures, best, strict=True):
        bars = "".join(_bar(label, probability) for label, probability in row[:_SHOWN])
        rest = f'<p class="ck-note">{len(row) - _SHOWN} more in the data below</p>' if len(row) > _SHOWN else ""
        cards.append(
            f'<section class="ck-card">{_thumbnail(picture, 160, picture.name)}'
            f'<div class="ck-side"><h3>{escape(picture.name)}</h3><ol class="ck-bars">{bars}</ol>{rest}</div></section>'
        )
    return f'<div class="ck-cards">{"".join(cards)}</div><p class="ck-note">{escape(note)}</p>'


def _bar(label: str, probability: float) -> str:
    percent = f"{probability:.1%}"
    return (
        f'<li><span class="ck-label">{escape(label)}</span><span class="ck-percent">{percent}</span>'
        f'<span class="ck-track" aria-hidden="true"><span style="width:{100 * probability:.2f}%"></span></span></li>'
    )


def _matrix(found: Match, pictures: Sequence[Picture], captions: Sequence[str]) -> str:
    shade = _shades(found.matrix)
    pairs = set(found.assignment)
    head = "".join(f'<th scope="col">{escape(caption)}</th>' for caption in captions)
    rows = []
    for i, picture in enumerate(pictures):
        cells = []
        for j in range(len(captions)):
            marks = _marks(found, i, j)
            pair = ' class="ck-pair"' if (i, j) in pairs else ""
            cells.append(f'<td{pair} style="--shade:{shade[i, j]:.0f}%">{found.matrix[i, j]:.3f}{marks}</td>')
        name = f"{_thumbnail(picture, 56)}<span>{escape(picture.name)}</span>"
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    return (
        '<div class="ck-scroll" tabindex="0" role="region" aria-label="Similarity matrix"><table class="ck-matrix">'
        "<caption>Cosine similarity of pictures and captions</caption>"
        f'<thead><tr><th scope="col">Picture</th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        '<p class="ck-note">The deeper the colour, the more alike. <b>▸</b> best caption of the picture, '
        '<b>▴</b> best picture of the caption, <span class="ck-key">framed</span> pair of the one-to-one assignment '
        "with the largest total similarity.</p>"
    )


def _marks(found: Match, i: int, j: int) -> str:
    marks = ""
    if found.best_caption[i] == j:
        marks += '<b aria-hidden="true">▸</b><span class="ck-hidden"> best caption of this picture</span>'
    if found.best_image[j] == i:
        marks += '<b aria-hidden="true">▴</b><span class="ck-hidden"> best picture of this caption</span>'
    if (i, j) in found.assignment:
        marks += '<span class="ck-hidden"> assigned to each other</span>'
    return marks


def _by_picture(found: Match, pictures: Sequence[Picture], captions: Sequence[str]) -> str:
    assigned = dict(found.assignment)
    rows = []
    for i, picture in enumerate(pictures):
        one = captions[assigned[i]] if i in assigned else "–"
        rows.append((picture.name, captions[found.best_caption[i]], one))
    return _table("Pictures", ("Picture", "Best caption", "One-to-one"), rows)


def _by_caption(found: Match, pictures: Sequence[Picture], captions: Sequence[str]) -> str:
    assigned = {j: i for i, j in found.assignment}
    rows = []
    for j, caption in enumerate(captions):
        one = pictures[assigned[j]].name if j in assigned else "–"
        rows.append((caption, pictures[found.best_image[j]].name, one))
    return _table("Captions", ("Caption", "Best picture", "One-to-one"), rows)


def _table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in rows
    )
    return (
        f'<div class="ck-scroll"><table class="ck-list"><caption>{escape(title)}</caption>'
        f"<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _shades(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Percent of the accent colour in each cell: the smallest similarity shown has none, the largest 60."""
    low, high = float(matrix.min()), float(matrix.max())
    return 60.0 * (matrix.astype(np.float64) - low) / max(high - low, 1e-9)


def _thumbnail(picture: Picture, side: int, alt: str = "") -> str:
    """The picture in the page itself; ``alt`` is empty where its name stands beside it."""
    small = picture.preview.copy()
    small.thumbnail((2 * side, 2 * side), Image.Resampling.LANCZOS)  # twice, for dense screens
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode()
    size = f"max-width:{side}px;max-height:{side}px"
    return f'<img src="data:image/webp;base64,{data}" alt="{escape(alt)}" style="{size}">'
