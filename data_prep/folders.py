"""Folders of pictures: with captions in ``.txt`` files beside them, or with a folder per class."""

from __future__ import annotations

import os
import re
from pathlib import Path

from clipkit.errors import ClipkitError
from clipkit.lines import decode_text, text_lines
from clipkit.pairs.index import compressed_tar
from data_prep.records import IMAGE_SUFFIXES, SPLIT_NAMES, Record, Skipped, Source
from data_prep.table_rows import TABLE_SUFFIXES
from data_prep.workplace import WORK, is_whole

TEMPLATE = "a photo of a {}."
_TABLES = (*TABLE_SUFFIXES, ".txt")
_LOOKED_FOR = 20  # pictures that a table of captions would name
COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz|tbz2|txz)$", re.IGNORECASE)


def read_folder(
    path: str | Path, *, template: str = TEMPLATE, encoding: str | None = None, captions_optional: bool = False
) -> Source:
    """Records of a folder, by what is in it.

    - pictures with a ``.txt`` of the same name beside them, at any depth: each line that is not empty is a
      caption, in ``encoding`` (in UTF-8, or UTF-16 with a byte order mark, if None);
    - otherwise a folder of pictures per class: its name, underscores as spaces, is the ``label``, the caption
      is made from ``template``, which has a ``{}`` for the label;
    - otherwise, with ``captions_optional``, pictures alone.

    Where the folders at the top are called ``train``, ``val`` (``valid``, ``validation``) and ``test``, they
    are the splits.

    Raises:
        ClipkitError: no such folder, no pictures in it, neither captions nor classes, a template without ``{}``, or
            no such encoding.
    """
    root = Path(path)
    if not root.is_dir():
        raise ClipkitError(f"{root}: no such folder")
    if "{}" not in template:
        raise ClipkitError(f"template {template!r} has no {{}} where the label goes; an example is {TEMPLATE!r}")
    pictures = _pictures(root)
    if not pictures:
        if any(root.rglob("*.tar")):
            raise ClipkitError(f"{root}: these are shards already; use them as they are")
        if packed := next((file for file in sorted(root.rglob("*")) if COMPRESSED_TAR.search(file.name)), None):
            raise compressed_tar(packed)
        raise ClipkitError(f"{root}: no pictures in this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
    splits = _splits(root, pictures)
    if any(picture.with_suffix(".txt").is_file() for picture in pictures):
        return _captioned(root, pictures, splits, encoding, captions_optional)
    in_classes = any(len(picture.relative_to(root).parts) > (2 if splits else 1) for picture in pictures)
    if captions_optional and (not in_classes or len({picture.parent for picture in pictures}) == 1):
        return _captioned(root, pictures, splits, encoding, captions_optional)
    if len({picture.parent.name for picture in pictures}) == 1 and (table := _table_of(root, pictures)):
        raise ClipkitError(
            f"{root}: its pictures lie in one folder, {pictures[0].parent.name}, and have no .txt beside them; if "
            f"{table.name} holds their captions, give {table}"
        )
    if not in_classes:
        raise ClipkitError(
            f"{root}: the pictures have no captions; put NAME.txt beside each NAME.jpg, or make one folder per class; "
            f"--recipe simclr, moco and byol learn from pictures alone (prepare: --captions-optional; stream: "
            f"--captions none)"
        )
    return _classes(root, pictures, splits, template)


def _pictures(root: Path) -> list[Path]:
    """All pictures below ``root``, sorted by their path; hidden files and folders are left alone, and so are data sets
    that were prepared, or are being prepared, inside it."""
    found: list[Path] = []
    visited: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in visited:  # a link back up would go round for ever
            folders[:] = []
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not _is_ours(Path(folder, name)))
        found += [
            Path(folder, name)
            for name in sorted(names)
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
        ]
    return sorted(found, key=lambda picture: picture.relative_to(root).as_posix())


def _table_of(root: Path, pictures: list[Path]) -> Path | None:
    """A table in ``root``, or a folder in it, that names one of the first pictures."""
    names = [picture.name.encode("utf-8", "surrogateescape") for picture in pictures[:_LOOKED_FOR]]
    for file in sorted([*root.glob("*"), *root.glob("*/*")]):
        if file.suffix.lower() not in _TABLES or not file.is_file() or file.name.startswith("."):
            continue
        data = file.read_bytes()
        if file.suffix.lower() == ".parquet" or any(name in data for name in names):  # parquet may be compressed
            return file
    return None


def _is_ours(folder: Path) -> bool:
    return is_whole(folder) or (folder / WORK).is_dir()


def _splits(root: Path, pictures: list[Path]) -> dict[str, str]:
    """Top folder to split, when every picture is in a folder that is named like a split; otherwise empty."""
    tops = {picture.relative_to(root).parts[0] for picture in pictures}
    splits = {top: SPLIT_NAMES.get(top.lower(), "") for top in tops}
    return splits if all(splits.values()) else {}


def _captioned(
    root: Path, pictures: list[Path], splits: dict[str, str], encoding: str | None, optional: bool
) -> Source:
    records: list[Record] = []
    skipped: list[Skipped] = []
    for picture in pictures:
        text = picture.with_suffix(".txt")
        if not text.is_file() and not optional:
            skipped.append(Skipped(str(picture), f"no caption: there is no {text.name} beside it"))
            continue
        try:
            lines = text_lines(decode_text(text.read_bytes(), encoding)) if text.is_file() else []
        except UnicodeDecodeError as error:
            reason = (
                f"its .txt is not {error.encoding}; save it as UTF-8, or give --encoding latin-1 to prepare or train"
            )
            skipped.append(Skipped(str(picture), reason))
            continue
        captions = dict.fromkeys(caption for line in lines if (caption := " ".join(line.split())))
        if not captions and not optional:
            skipped.append(Skipped(str(picture), f"empty caption: nothing is written in {text.name}"))
            continue
        file = picture.relative_to(root)
        key = f"{len(records):08d}"
        records.append(Record(key, picture, tuple(captions), {"file": file.as_posix()}, splits.get(file.parts[0])))
    if not records:
        raise ClipkitError(f"{root}: none of its {len(pictures):,} pictures has a caption ({skipped[0].reason})")
    return Source(str(root), records, skipped)


def _classes(root: Path, pictures: list[Path], splits: dict[str, str], template: str) -> Source:
    records: list[Record] = []
    skipped: list[Skipped] = []
    for picture in pictures:
        file = picture.relative_to(root)
        inside = file.parts[1:] if splits else file.parts
        if len(inside) < 2:
            skipped.append(Skipped(str(picture), "not in the folder of a class"))
            continue
        label = " ".join(inside[0].replace("_", " ").split())
        meta = {"label": label, "file": file.as_posix()}
        key = f"{len(records):08d}"
        records.append(Record(key, picture, (template.replace("{}", label),), meta, splits.get(file.parts[0])))
    return Source(str(root), records, skipped)
