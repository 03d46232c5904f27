"""Tables as one HTML page that holds its pictures and loads nothing: light, dark, wide, narrow."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

from torch import Tensor

from clipkit.explain.page_style import SCRIPT, STYLE
from clipkit.explain.sides import Item
from clipkit.explain.table import NEGATIVE, POSITIVE, Explained, Table
from clipkit.explain.words import cell, differing, differing_settings, facts, roles, sentence
from clipkit.training.report.html import page, section
from clipkit.training.report.style import STYLE as REPORT

_SIDE = 40  # pixels of a picture along a side
_CLASS = {POSITIVE: "pos", NEGATIVE: "neg"}
_GLYPH = {POSITIVE: "+", NEGATIVE: "−", ".": "·"}


def document(explained: Sequence[Explained]) -> str:
    """The whole page; everything from outside is escaped."""
    names = " and ".join(e.recipe.name for e in explained)
    # Two tables side by side need a wider page than a report.
    wide = "main { max-width:1720px; }" if len(explained) > 1 else ""
    body = [
        "<h1>What a method does with a batch</h1>",
        f'<p class="lede">{escape(names)}</p>',
        f'<p class="facts">{escape(_batch(explained))}</p>',
        f'<div class="recipes">{"".join(_recipe(e) for e in explained)}</div>',
        section("How to read it", "", _LEGEND),
        section("What differs", "", _differences(explained)) if len(explained) > 1 else "",
        f"<script>{SCRIPT}</script>",
    ]
    return page(f"{names} explained", REPORT + STYLE + wide, body)


_LEGEND = (
    "<p>Rows are the queries, columns the keys. A cell’s colour and sign are its role; what a sign means in a table "
    "stands below that table. The deeper the colour and the larger the number, the stronger the gradient of the loss "
    "with respect to the cell’s score, which says what a step will change.</p>"
    "<p>Where the gradient is below 0 the loss falls when the two come closer: the step pulls them together. Where it "
    "is above 0 it pushes them apart. With several positives in a row, one that is far ahead of the others can be "
    "pushed.</p><p>Point at a cell, touch it, or walk through the table with Tab and the arrow keys: its numbers "
    "stand below the table.</p>"
)


def _batch(explained: Sequence[Explained]) -> str:
    """Where the batch is from, and whose weights."""
    sources = list(dict.fromkeys(e.source for e in explained))
    weights = list(dict.fromkeys(e.weights for e in explained))
    n = explained[0].config.optim.batch_size
    whose = "untrained weights" if weights == ["untrained"] else f"weights of {', '.join(weights)}"
    return f"A batch of {n} samples from {', '.join(sources)}; {whose}."


def _recipe(e: Explained) -> str:
    told = facts(e)
    lines = [
        ("loss", f"{e.loss:.4g}"),
        *((name, told[name]) for name in ("objective", "temperature", "keys come from")),
    ]
    if e.config.optim.momentum is not None:
        lines.append(("momentum encoder", told["momentum encoder"]))
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in lines)
    tables = "".join(_table(table, e, i) for i, table in enumerate(e.tables))
    return (
        f'<article><h2>{escape(e.recipe.name)}</h2><p class="soft">{escape(e.recipe.summary)}</p>'
        f'<p>{escape(sentence(e))}</p><dl class="about">{listed}</dl>{tables}</article>'
    )


def _table(table: Table, e: Explained, place: int) -> str:
    unit = _unit(table.largest)
    name = f"{e.recipe.name}, table {place + 1}" if len(e.tables) > 1 else f"table of {e.recipe.name}"
    head = "".join(f'<th scope="col">{_column(item)}</th>' for item in table.keys)
    if table.queue:
        head += f'<th scope="col" class="queue"><span>queue × {table.queue.size:,}</span></th>'
    rows = "".join(_row(table, e, i, unit) for i in range(len(table.queries)))
    loss = f"Loss of this table: {table.loss:.4g}. " if len(e.tables) > 1 else ""
    many = " many" if len(table.keys) > 12 else ""
    how = f"{loss}Numbers: gradient of the loss, × {10**unit:,}."
    return (
        f'<div class="scroll" role="region" aria-label="{escape(name)}"><table class="cells{many}">'
        f'<caption class="soft">{how}</caption><thead><tr><td></td>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="readout" aria-live="polite">Point at a cell.</p>{_key(table, e)}'
    )


def _row(table: Table, e: Explained, i: int, unit: int) -> str:
    cells = []
    for j in range(len(table.keys)):
        role = str(table.roles[i, j])
        gap = " gap" if j and _new_view(table.keys[j - 1], table.keys[j]) else ""
        gradient = float(table.gradients[i, j]) if role in _CLASS else None
        cells.append(_cell(role, gradient, table.largest, unit, cell(table, e, i, j), gap, first=i == j == 0))
    if table.queue:
        said = cell(table, e, i, len(table.keys))
        cells.append(_cell(NEGATIVE, float(table.queue.gradients[i]), table.largest, unit, said, " gap queue"))
    gap = ' class="gap"' if i and _new_view(table.queries[i - 1], table.queries[i]) else ""
    return f'<tr{gap}><th scope="row">{_side(table.queries[i])}</th>{"".join(cells)}</tr>'


def _cell(
    role: str, gradient: float | None, largest: float, unit: int, said: str, extra: str, first: bool = False
) -> str:
    glyph = _GLYPH.get(role, role)
    tip, stop = escape(said), "0" if first else "-1"
    if gradient is None:
        inside, kind, share = f"<b>{glyph}</b>", "none", 0.0
    else:
        share = abs(gradient) / largest if largest else 0.0
        inside, kind = f"<b>{glyph}</b><span>{_number(gradient, unit)}</span>", _CLASS[role]
    return (
        f'<td class="{kind}{extra}" style="--v:{share:.2f}" tabindex="{stop}" title="{tip}" aria-label="{tip}">'
        f"{inside}</td>"
    )


def _unit(largest: float) -> int:
    """The power of ten that gives the largest gradient two or three digits before the point."""
    return max(0, 2 - math.floor(math.log10(largest))) if largest > 0 else 0


def _number(gradient: float, unit: int) -> str:
    value = gradient * 10**unit
    if gradient == 0 or abs(value) >= 0.5:
        return f"{value:+.0f}".replace("-", "−") if gradient else "0"
    return "≈0"


def _new_view(one: Item, other: Item) -> bool:
    """Whether another view begins, so that the blocks can be told apart."""
    return one.kind == other.kind and one.kind in ("view", "target") and one.code[-1] != other.code[-1]


def _column(item: Item) -> str:
    if item.picture is not None:
        return f'{_picture(item)}<span class="code">{escape(item.code)}</span>'
    return f'<span class="tall">{escape(item.code)} {escape(item.name)}</span>'


def _side(item: Item) -> str:
    if item.picture is not None:
        return f'<span class="side">{_picture(item)}<span class="code">{escape(item.code)}</span></span>'
    return f'<span class="name"><span class="code">{escape(item.code)}</span> {escape(item.name)}</span>'


def _picture(item: Item) -> str:
    assert item.picture is not None
    return f'<img src="{data_uri(item.picture)}" alt="{escape(item.name)}" title="{escape(item.name)}">'


def data_uri(picture: Tensor) -> str:
    """uint8 (3, H, W), twice as large as it is shown, for dense screens."""
    from PIL import Image

    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    image.thumbnail((2 * _SIDE, 2 * _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _key(table: Table, e: Explained) -> str:
    lines = [
        f'<li><i class="{_CLASS.get(role, "none")}">{_GLYPH.get(role, role)}</i>{escape(said)}</li>'
        for role, said in roles(table, e).items()
    ]
    if table.queue:
        said = f"queue: {table.queue.size:,} past keys, negatives of every row; their gradients are added up"
        lines.append(f'<li><i class="neg">−</i>{said}</li>')
    return f'<ul class="roles">{"".join(lines)}</ul>'


def _differences(explained: Sequence[Explained]) -> str:
    differ, agree = differing(explained)
    told = [facts(e) for e in explained]
    head = "".join(f'<th scope="col">{escape(e.recipe.name)}</th>' for e in explained)
    rows = [(escape(name), [fact[name] for fact in told]) for name in differ]
    rows += [(f"<code>{escape(flag)}</code>", values) for flag, values in differing_settings(explained).items()]
    body = "".join(
        f'<tr><th scope="row">{name}</th>'
        + "".join(
            f'<td data-recipe="{escape(e.recipe.name)}">{escape(value)}</td>'
            for e, value in zip(explained, values, strict=True)
        )
        + "</tr>"
        for name, values in rows
    )
    same = "; ".join(f"{name}: {told[0][name]}" for name in agree)
    return (
        f'<table class="differs"><thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>'
        f'<p class="soft same">The same in all: {escape(same or "nothing")}.</p>'
    )
