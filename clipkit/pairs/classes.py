"""Labels that lie in shards as numbers, and the names of their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from clipkit.errors import ClipkitError
from clipkit.lines import decode_text, text_lines
from clipkit.pairs.index import RECORDS, ShardIndex
from clipkit.pairs.remote import Remote, read_whole

CLASS_NAMES = "classnames.txt"
_CLS = 1 + RECORDS.index("cls")  # place of the label among a sample's spans


def with_class_names(indexes: Sequence[ShardIndex]) -> list[ShardIndex]:
    """``indexes`` with the names of their classes, where samples have a ``.cls`` and a file says what they are called.

    The file is CLIP_benchmark's: ``classnames.txt``, a name a line, beside the shards or in the folder above.
    """
    known: dict[str, tuple[str, ...]] = {}
    return [
        replace(index, classes=_names(index.path, known)) if len(index) and index.spans[:, _CLS, 1].any() else index
        for index in indexes
    ]


def label_of(stored: bytes, classes: tuple[str, ...]) -> str | None:
    """The label in a ``.cls``: its text, or the name of the class of that number; None if it is empty.

    Raises:
        ClipkitError: a number that no class has.
    """
    text = stored.decode("utf-8", "replace").strip()
    if not classes or not (text.isascii() and text.isdigit()):
        return text or None
    named = classes[int(text)] if int(text) < len(classes) else ""
    if not named:
        raise ClipkitError(f"its .cls says class {text}, which {CLASS_NAMES} has no name for")
    return named


def _names(shard: Path | Remote, known: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Names of the classes in ``shard``; those of its folder are looked for once and ``known`` then."""
    remote = isinstance(shard, Remote)
    folder, _, _ = (shard.url if isinstance(shard, Remote) else shard.absolute().as_posix()).rpartition("/")
    if folder not in known:
        above, _, _ = folder.rpartition("/")
        places = [place for place in (folder, above) if not remote or "://" in place]  # a host is in no folder
        read = read_whole if remote else _read_local
        data = next((d for place in places if (d := read(f"{place}/{CLASS_NAMES}")) is not None), None)
        lines = [] if data is None else text_lines(decode_text(data, None, "replace"))
        known[folder] = tuple(line.strip() for line in lines)
    return known[folder]


def _read_local(path: str) -> bytes | None:
    return Path(path).read_bytes() if Path(path).is_file() else None
