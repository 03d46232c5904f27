"""What people give on the command line: flags, pictures, folders of them, files of lines."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from clipkit.lines import text_lines

_CAPTIONS = ("caption", "text", "title", "captions")  # names of a table's column


def parse_flags(what: Any, arguments: list[str], prog: str, **options: Any) -> Any:
    """``tyro.cli``, whose framed messages about a wrong flag become one line. A ``~`` that the shell has left alone, as
    in ``--data=~/photos``, is the home folder.

    Raises:
        ClipkitError: a flag that is none, or a value that does not fit.
    """
    import tyro

    arguments = [re.sub(r"^(--[\w-]+=)?~/", lambda found: f"{found[1] or ''}{Path.home()}/", a) for a in arguments]
    if any(a in ("-h", "--help") for a in arguments):
        return tyro.cli(what, args=arguments, prog=prog, **options)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return tyro.cli(what, args=arguments, prog=prog, **options)
    except SystemExit:
        text = re.sub(r"\x1b\[[0-9;]*m", "", said.getvalue())
        lines = [line.strip("│|").strip() for line in text.splitlines()]
        inside = [line for line in lines if re.search(r"\w", line) and not line.startswith(("╭", "+", "For full"))]
        inside = list(takewhile(lambda line: not line.startswith("Argument helptext"), inside))
        message = re.sub(r" (Perhaps you meant: \S+).*", r"; \1", " ".join(inside[1:])).replace(f" {prog} --help", "")
        raise ClipkitError(f"{message}; see {prog} --help") from None


def picture_paths(inputs: Sequence[str]) -> list[Path]:
    """The pictures that ``inputs`` name, files and folders; folders are read to the bottom, sorted."""
    from clipkit.pairs.index import IMAGE_EXTENSIONS

    paths: list[Path] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            named = (p for p in path.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
            found = sorted(p for p in named if p.is_file())  # a pipe would be waited for without end
            if not found:
                raise ClipkitError(f"{path}: no picture in this folder ({', '.join(IMAGE_EXTENSIONS)})")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise ClipkitError(f"{path}: no such picture or folder")
    if not paths:
        raise ClipkitError("no picture given: pass files or folders")
    return paths


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        raise ClipkitError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise ClipkitError(f"{path}: cannot be read ({error.strerror})") from None
    lines = [line for line in lines if line]
    if not lines:
        raise ClipkitError(f"{path}: no line with text in it")
    return lines


def read_captions(path: str | Path) -> list[str]:
    """The captions of a file: its lines, or of a CSV or TSV table the column that is called so.

    Raises:
        ClipkitError: no such file, no text, a table without that column, or no caption in it.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ClipkitError(f"{path}: cannot be read ({error.strerror})") from None
    return captions_in(data, str(path))


def captions_in(data: bytes, name: str) -> list[str]:
    """``read_captions`` of a file's bytes; ``name`` says in messages which file, and by its ending what it is."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ClipkitError(f"{name}: not UTF-8 text") from None
    if Path(name).suffix.lower() in (".csv", ".tsv"):
        lines = _caption_column(text, "\t" if name.lower().endswith(".tsv") else ",", name)
    else:
        lines = text_lines(text)
    lines = [" ".join(line.split()) for line in lines]
    lines = [line for line in lines if line]
    if not lines:
        raise ClipkitError(f"{name}: no line with text in it")
    return lines


def _caption_column(text: str, separator: str, name: str) -> list[str]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator) if row]
    except csv.Error as error:
        raise ClipkitError(f"{name}: no table ({error}); give a file with a caption per line") from None
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    column = next((head.index(known) for known in _CAPTIONS if known in head), None)
    if column is not None:
        return [row[column] for row in rows[1:] if len(row) > column]
    if any(len(row) != 1 for row in rows):
        raise ClipkitError(f"{name}: no column called {' or '.join(_CAPTIONS[:3])}; name one so in the first row")
    return [row[0] for row in rows]


def check_output(path: str | None) -> None:
    """Refuse a file that cannot be written, before the work and not after it."""
    if path is None:
        return
    if not path.strip() or path.endswith(("/", os.sep)) or Path(path).is_dir():
        raise ClipkitError(f"{path or 'an empty name'}: a folder, or no name of a file; name the file to write")
    if not Path(path).parent.is_dir():
        raise ClipkitError(f"{path}: the folder {Path(path).parent} does not exist; make it first")


def write_output(path: str, text: str) -> None:
    """Write a file of UTF-8 text, whole or not at all; line ends stay as they are.

    Raises:
        ClipkitError: it cannot be written.
    """
    try:
        with atomic_write(Path(path)) as file:
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise ClipkitError(f"{path}: cannot be written ({error.strerror}); choose another file") from None


def lines_or_values(values: tuple[str, ...], flag: str) -> list[str]:
    """The values of ``flag``: several words, one word with commas, or one file with a value per line."""
    if not values:
        raise ClipkitError(f"{flag} is missing: give class names, or a file with one per line")
    if len(values) == 1 and is_file(values[0]):
        return read_lines(values[0])
    if len(values) == 1 and values[0].lower().endswith(".txt"):
        raise ClipkitError(f"{flag} {values[0]}: no such file; give a file with one per line, or the class names")
    if len(values) == 1 and "," in values[0]:
        return [v.strip() for v in values[0].split(",") if v.strip()]
    return list(values)


def is_file(text: str) -> bool:
    """Whether ``text`` names a file that is there; a long sentence, or one with a null character, names none."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def parse_query(text: str) -> tuple[list[str | Path], list[str | Path]]:
    """What a query adds and what it takes off: texts, and pictures as paths.

    Words are one text, and the path of a picture one picture. ``"a beach" + photo.jpg - "people"`` is arithmetic: texts
    in quotes and pictures, joined by + and -. Words that merely hold a + or a - stay words. In quotes, too, the path of
    a picture that is there is a picture: its name may have spaces. What names a file that is there is that file.

    Raises:
        ClipkitError: quotes that make no such query, or an address.
    """
    from clipkit.pairs.index import IMAGE_EXTENSIONS

    def is_picture(word: str) -> bool:
        return Path(word).suffix.lower().lstrip(".") in IMAGE_EXTENSIONS

    def meant(word: str) -> str | Path:
        inside = word.strip('"')
        quoted = word.startswith('"')
        if is_picture(inside) and "://" in inside:
            raise ClipkitError(f"{inside}: addresses are not fetched; download the picture and give its path")
        return Path(inside) if is_picture(inside) and (not quoted or is_file(inside)) else inside

    text = text.strip()
    if re.search(r"\.\w{2,5}$", text) and is_file(text):
        return [Path(text)], []
    term = r'(?:"[^"]+"|[^"\s]+)'
    if re.fullmatch(rf"{term}(?:\s+[+-]\s+{term})+", text):
        found = re.findall(rf"(?:^|\s([+-])\s)\s*({term})", text)
        if all(word.startswith('"') or is_picture(word) for _, word in found):
            terms = [(sign, meant(word)) for sign, word in found]
            return [t for sign, t in terms if sign != "-"], [t for sign, t in terms if sign == "-"]
    if re.fullmatch('"[^"]+"', text):
        return [meant(text)], []
    if '"' in text and re.search(r'^["+-]|[+-]$', text):
        raise ClipkitError(
            f'{text}: expected words, a picture\'s path, or terms as in "a beach" + photo.jpg - "people"'
        )
    return [meant(text) if '"' not in text else text], []


def parse_where(values: Sequence[str]) -> dict[str, str]:
    """``NAME=PATTERN`` pairs as a dict.

    Raises:
        ClipkitError: a value without =, or a name twice.
    """
    found: dict[str, str] = {}
    for value in values:
        name, sign, pattern = value.partition("=")
        if not sign:
            raise ClipkitError(f"--where {value}: expected NAME=PATTERN, as in label=bird or 'path=*/2019/*'")
        if name in found:
            raise ClipkitError(f"--where {value}: {name} has a pattern already, {found[name]}; give one for each name")
        found[name] = pattern
    return found


def as_templates(values: Sequence[str]) -> str | list[str] | None:
    """Prompts from the command line: sentences, the name of a set, or None for what suits the model."""
    if not values:
        return None
    return values[0] if len(values) == 1 else list(values)
