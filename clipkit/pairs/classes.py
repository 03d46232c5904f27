"""Labels that lie in shards as numbers, and the names of their classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from clipkit.errors import ClipkitError
from clipkit.pairs.index import ShardIndex
from clipkit.pairs.remote import Remote, read_whole

CLASS_NAMES = "classnames.txt"
_CLS = 3  # place of the label among a sample's spans


def with_class_names(index: ShardIndex) -> ShardIndex:
    """``index`` with the names of its classes, where samples have a ``.cls`` and a file says what they are called.

    The file is CLIP_benchmark's: ``classnames.txt``, a name a line, beside the shards or in the folder above.
    """
    if not len(index) or not index.spans[:, _CLS, 1].any():
        return index
    for data in _files(index.path):
        if data is not None and (names := data.decode("utf-8-sig", "replace").split("\n")):
            return replace(index, classes=tuple(name.strip() for name in names))
    return index


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


def _files(shard: Path | Remote) -> list[bytes | None]:
    if isinstance(shard, Remote):
        folder = shard.url.rpartition("/")[0]
        return [read_whole(f"{place}/{CLASS_NAMES}") for place in (folder, folder.rpartition("/")[0])]
    places = [folder / CLASS_NAMES for folder in (shard.parent, shard.absolute().parent.parent)]
    return [place.read_bytes() if place.is_file() else None for place in places]
