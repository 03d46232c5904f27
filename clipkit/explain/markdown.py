"""The generated part of a recipe's page in the documentation: its table, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from clipkit.config import Config
from clipkit.errors import ClipkitError
from clipkit.explain.table import Explained
from clipkit.explain.text import grid, key
from clipkit.explain.words import plain, sentence

START, END = "<!-- written by clipkit explain --markdown -->", "<!-- end -->"
_SAMPLES = 4  # enough to show every role once
_WIDTH, _PROSE = 100, 116  # characters of a line in the table, and of text


def rewrite(folder: Path, names: Sequence[str]) -> None:
    """Bring the generated part of ``NAME.md`` in ``folder`` up to date for each of ``names``, or for every page.

    Raises:
        ClipkitError: no such page, a page without the marks, or no recipe of a page's name.
    """
    pages = [folder / f"{name}.md" for name in names] or sorted(p for p in folder.glob("*.md") if p.stem != "README")
    if not pages:
        raise ClipkitError(f"--markdown {folder}: no page of a recipe (NAME.md) in it")
    for path in pages:
        if not path.is_file():
            raise ClipkitError(f"{path}: no such page; write one with the lines {START} and {END} in it")
        text = path.read_text(encoding="utf-8")
        path.write_text(_put(text, generated(path.stem), path), encoding="utf-8")
        print(path)


def generated(name: str) -> str:
    """The part of recipe ``name``: roles of the cells for built-in samples, and settings that are not the defaults.

    It holds no gradients: their last digits, unlike roles, differ between machines.
    """
    from clipkit.explain_command import Explain, explain_recipe

    explained = explain_recipe(name, Explain(samples=_SAMPLES), [])
    lines = [fill(sentence(explained), _PROSE), "", "```text", *_tables(explained), "```", "", *_settings(explained)]
    return "\n".join(lines)


def _tables(explained: Explained) -> list[str]:
    lines: list[str] = []
    for table in explained.tables:
        lines += ([""] if lines else []) + grid(table, with_gradients=False) + key(table, explained, _WIDTH)
    return lines


def _settings(explained: Explained) -> list[str]:
    mine, defaults = explained.recipe.defaults.to_dict(), Config().to_dict()
    changed = {name: value for name, value in mine.items() if name != "recipe" and value != defaults[name]}
    if not changed:
        return ["Its settings are the defaults of `clipkit train --help`."]
    rows = [
        f"| `--{name.replace('_', '-')}` | {plain(value)} | {plain(defaults[name])} |"
        for name, value in changed.items()
    ]
    return ["| setting | here | default |", "|---|---|---|", *rows]


def _put(text: str, part: str, path: Path) -> str:
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ClipkitError(f"{path}: the lines {START} and {END} are missing; put them where the table goes")
    return f"{before}{START}\n\n{part}\n\n{END}{after}"
