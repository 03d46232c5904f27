"""Tables for a terminal, in characters that any terminal has."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from textwrap import wrap

import numpy as np

from clipkit.explain.sides import Item
from clipkit.explain.table import NEGATIVE, POSITIVE, Explained, Table
from clipkit.explain.words import differing, differing_settings, facts, roles, sentence

_NAME = 24  # characters of a row's name
_GAP = "    "


def report(explained: Sequence[Explained], width: int = 100) -> str:
    """All recipes, beside one another where ``width`` allows it, and what differs between them."""
    blocks = [block(e, (width - len(_GAP)) // 2 if len(explained) > 1 else width) for e in explained]
    widest = [max(len(line) for line in lines) for lines in blocks]
    if len(blocks) > 1 and sum(widest) + len(_GAP) * (len(blocks) - 1) <= width:
        rows = zip_longest(*blocks, fillvalue="")
        lines = [_GAP.join(f"{part:{w}}" for part, w in zip(row, widest, strict=True)).rstrip() for row in rows]
    else:
        blocks = [block(e, width) for e in explained]
        lines = [line for lines in blocks for line in [*lines, ""]][:-1]
    lines += ["", *wrap(LEGEND, width)]
    if len(explained) > 1:
        lines += ["", *differences(explained, width)]
    return "\n".join(lines)


LEGEND = (
    "The digit is the size of the gradient of the loss with respect to the cell's score, in ninths of the table's "
    "largest (the queue's keys are added up); no digit, no gradient. The loss pulls + together and pushes - apart; "
    "! marks a cell where it is the other way round."
)


def block(e: Explained, width: int) -> list[str]:
    """One recipe: what it is, its tables, what the characters mean."""
    lines = wrap(f"{e.recipe.name}: {e.recipe.summary}", width)
    lines += wrap(sentence(e), width)
    lines += wrap(f"{e.weights}, loss {e.loss:.4g}, {_how(e)}", width)
    for table in e.tables:
        loss = [f"loss of this table {table.loss:.4g}"] if len(e.tables) > 1 else []
        lines += ["", *loss, *grid(table), *key(table, e, width)]
    return lines


def _how(e: Explained) -> str:
    told = facts(e)
    return f"temperature {told['temperature']}"


def grid(table: Table, with_gradients: bool = True) -> list[str]:
    """Rows by columns: a role's character in each cell, and how strong its gradient is."""
    cells = [
        [_cell(table, i, j, with_gradients) for j in range(len(table.keys))]
        + ([_queue_cell(table, i, with_gradients)] if table.queue else [])
        for i in range(len(table.queries))
    ]
    heads = [item.code for item in table.keys] + ([f"queue x{table.queue.size}"] if table.queue else [])
    widths = [max(len(x) for x in column) for column in zip(heads, *cells, strict=True)]
    names = [_label(item) for item in table.queries]
    left = max(map(len, names))
    lines = [" " * left + "  " + " ".join(f"{h:>{w}}" for h, w in zip(heads, widths, strict=True))]
    for name, row in zip(names, cells, strict=True):
        lines.append(f"{name:{left}}  " + " ".join(f"{x:>{w}}" for x, w in zip(row, widths, strict=True)))
    return [line.rstrip() for line in lines]


def key(table: Table, e: Explained, width: int) -> list[str]:
    """What the characters mean, and the names of the columns where the rows have others."""
    lines = [
        line
        for role, said in roles(table, e).items()
        for line in wrap(said, width, initial_indent=f"{role} ", subsequent_indent="  ")
    ]
    if table.queue:
        lines += wrap(f"queue: {table.queue.size:,} past keys, negatives of every row", width, subsequent_indent="  ")
    rows = {(item.code.rstrip("abx"), item.name) for item in table.queries}
    if any((item.code, item.name) not in rows for item in table.keys if item.kind not in ("view", "target")):
        told = "; ".join(f"{item.code} {item.name}" for item in table.keys)
        lines += wrap(f"columns: {told}", width, subsequent_indent="  ")
    return lines


def differences(explained: Sequence[Explained], width: int = 100) -> list[str]:
    """A small table of what the recipes differ in, and a line of what they agree in."""
    differ, agree = differing(explained)
    told = [facts(e) for e in explained]
    rows = [["", *(e.recipe.name for e in explained)]]
    rows += [[name, *(fact[name] for fact in told)] for name in differ]
    rows += [[flag, *values] for flag, values in differing_settings(explained).items()]
    first = max(len(row[0]) for row in rows)
    each = max(16, (width - first - 2 * len(explained)) // len(explained))
    lines = ["What differs"]
    for row in rows:
        columns = [wrap(text, each) or [""] for text in row[1:]]
        for at, parts in enumerate(zip_longest(*columns, fillvalue="")):
            line = f"{row[0] if at == 0 else '':{first}}  " + "  ".join(f"{part:{each}}" for part in parts)
            lines.append(line.rstrip())
    if agree:
        lines += wrap("the same: " + "; ".join(f"{n}: {told[0][n]}" for n in agree), width, subsequent_indent="  ")
    return lines


def _label(item: Item) -> str:
    name = item.name if len(item.name) <= _NAME else item.name[: _NAME - 3].rstrip() + "..."
    return f"{item.code} {name}"


def _cell(table: Table, i: int, j: int, with_gradients: bool) -> str:
    role = str(table.roles[i, j])
    if not with_gradients or role not in (POSITIVE, NEGATIVE):
        return role
    gradient = table.gradients[i, j]
    against = gradient > 0 if role == POSITIVE else gradient < 0
    return role + strength(gradient, table.largest) + ("!" if against else "")


def _queue_cell(table: Table, i: int, with_gradients: bool) -> str:
    assert table.queue is not None
    return NEGATIVE + (strength(table.queue.gradients[i], table.largest) if with_gradients else "")


def strength(gradient: float, largest: float) -> str:
    """A digit: 9 for the largest gradient, 0 for a small one; nothing for none at all."""
    return str(int(np.rint(9 * abs(gradient) / largest))) if gradient else ""
