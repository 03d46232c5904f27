"""The captions files that known data sets come in: COCO's JSON, and Flickr8k's and Flickr30k's token files."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError
from clipkit.lines import decode_text
from data_prep.records import Record, Skipped, Source
from data_prep.table_rows import read_text

Row = tuple[str, list[Any], str | None, dict[str, Any]]
"""Picture, captions, split, what else is known."""

_SPLITS = {"train": "train", "restval": "train", "dev": "val", "val": "val", "valid": "val", "test": "test"}
_TOKEN = re.compile(r"^(?P<file>[^\t]+?)#(?P<number>\d+)\t(?P<caption>.*)$")
_PICTURE_FOLDERS = (
    "images",
    "Images",
    "flickr30k_images",
    "flickr30k-images",
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
)


def read_json(path: Path, image_root: Path | None, captions_optional: bool = False) -> Source:
    """Records of a JSON file of captions: COCO's (``images`` and ``annotations``), or Karpathy's of COCO, Flickr8k and
    Flickr30k (``images`` with ``sentences`` and a split).

    Raises:
        ClipkitError: it is neither, or none of its pictures is there.
    """
    skipped: list[Skipped] = []
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        images = content["images"]
        rows = _coco_rows(path, images, content["annotations"], skipped) if "annotations" in content else _rows(images)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        said_so = " ".join(str(error).split()) or type(error).__name__
        raise ClipkitError(
            f"{path}: not a file of captions ({type(error).__name__}: {said_so[:100]}); expected COCO's JSON with "
            f"images and annotations, or Karpathy's with sentences; a JSON object per line goes in a .jsonl"
        ) from None
    return _records(path, rows, _roots(path, image_root), skipped, captions_optional)


def _coco_rows(path: Path, images: Any, annotations: Any, skipped: list[Skipped]) -> list[Row]:
    """Rows of COCO's images; what cannot be one goes to ``skipped``. An id is the same as a number and as a text."""
    said: dict[str, list[Any]] = {str(image["id"]): [] for image in images}
    orphans, lacking = [], []
    for number, annotation in enumerate(annotations, 1):
        try:
            image_id, caption = annotation["image_id"], annotation["caption"]
        except (KeyError, TypeError):
            image_id = None
        if not isinstance(image_id, str | int):
            lacking.append(number)
            continue
        captions = said.get(str(image_id))
        if captions is None:
            orphans.append(image_id)
        else:
            captions.append(caption)
    if lacking and len(lacking) == len(annotations):
        raise TypeError("no annotation has an image_id and a caption")
    if lacking:
        reason = (
            f"annotations without an image_id or a caption: {len(lacking):,}, the first of them number {lacking[0]:,}"
        )
        skipped.append(Skipped(path.name, reason, row=True))
    if orphans:  # one entry: lists of some of COCO's images often keep all of its annotations
        reason = f"annotations of no image in the list: {len(orphans):,}, the first of image_id {orphans[0]!r}"
        skipped.append(Skipped(path.name, reason, row=True))
    rows: list[Row] = []
    for number, image in enumerate(images, 1):
        file = image["file_name"]
        if isinstance(file, str) and file and "\0" not in file:
            rows.append((file, said[str(image["id"])], None, {"id": image["id"]}))
        else:
            skipped.append(Skipped(f"{path.name} image {number:,}", f"its file_name is {file!r:.80}, not a name"))
    return rows


def _rows(images: Any) -> list[Row]:
    """Rows of Karpathy's images."""
    return [
        (
            str(Path(image.get("filepath", ""), image["filename"])),
            [sentence["raw"] for sentence in image["sentences"]],
            _SPLITS.get(image.get("split")),
            {},
        )
        for image in images
    ]


def is_token_file(path: Path, encoding: str | None) -> bool:
    """Whether the file begins as ``1000268201_693b08cb0e.jpg#0<tab>A child ...``."""
    try:
        with open(path, "rb") as file:
            begin = decode_text(file.read(1 << 16), encoding, "replace")
    except OSError:
        return False
    return _TOKEN.match(begin.partition("\n")[0].rstrip("\r")) is not None


def read_tokens(path: Path, image_root: Path | None, encoding: str | None) -> Source:
    """Records of a token file, a caption per line: ``PICTURE#NUMBER<tab>CAPTION``, in ``encoding``.

    Flickr8k's lists of its splits (``Flickr_8k.trainImages.txt``, ``devImages``, ``testImages``) are used where they
    lie beside it.

    Raises:
        ClipkitError: its bytes are no such text, or none of its pictures is there.
    """
    captions: dict[str, list[str]] = {}
    skipped = []
    for number, line in enumerate(read_text(path, encoding).split("\n"), 1):
        if not line.strip():
            continue
        match = _TOKEN.match(line.rstrip("\r"))
        if match is None:
            skipped.append(Skipped(f"{path.name} line {number}", "not PICTURE#NUMBER<tab>CAPTION", row=True))
            continue
        # Some releases have names that end in .jpg.1
        captions.setdefault(re.sub(r"(\.jpe?g)\.\d+$", r"\1", match["file"]), []).append(match["caption"])
    splits: dict[str, str] = {}
    for listed in sorted(path.parent.glob("*_8k.*Images.txt")):
        split = _SPLITS.get(listed.name.split(".")[1].removesuffix("Images").lower())
        if split:
            splits.update(dict.fromkeys(listed.read_text(encoding="utf-8", errors="replace").split(), split))
    # Flickr8k has 91 pictures that none of its lists has; they are for training
    rows: list[Row] = [
        (file, said, splits.get(file, "train") if splits else None, {}) for file, said in captions.items()
    ]
    return _records(path, rows, _roots(path, image_root), skipped)


def _roots(path: Path, image_root: Path | None) -> list[Path]:
    """Folders that the pictures may lie in."""
    if image_root is not None:
        if not image_root.is_dir():
            raise ClipkitError(f"{image_root}: no such folder; check --image-root")
        return [image_root]
    near = [path.parent, path.parent.parent]
    named = [match[0]] if (match := re.search(r"(train|val|test)\d{4}", path.stem)) else []  # captions_val2017.json
    return [*near, *(folder / name for folder in near for name in [*named, *_PICTURE_FOLDERS])]


def _spaced(caption: str) -> str:
    return " ".join(caption.split())


def _records(
    path: Path,
    rows: Iterable[Row],
    roots: list[Path],
    skipped: list[Skipped],
    captions_optional: bool = False,
) -> Source:
    records: list[Record] = []
    root = roots[0]
    for file, said, split, meta in rows:
        where = os.path.normpath(root / file)
        if not os.path.isfile(where):  # the folder that had the last one probably has this one too
            root = next((r for r in roots if (r / file).is_file()), root)
            where = os.path.normpath(root / file)
        captions = tuple(dict.fromkeys(c for caption in said if isinstance(caption, str) and (c := _spaced(caption))))
        odd = [caption for caption in said if not isinstance(caption, str)]
        if not os.path.isfile(where):
            skipped.append(Skipped(where, "no such file"))
        elif not captions and not captions_optional:
            skipped.append(Skipped(where, "no caption in the file of captions"))
        else:
            skipped += [Skipped(where, f"a caption that is {json.dumps(c)[:80]}, not a text", row=True) for c in odd]
            records.append(Record(f"{len(records):08d}", Path(where), captions, {**meta, "file": file}, split))
    if not records:
        first = f" ({skipped[0].file}: {skipped[0].reason})" if skipped else ""
        raise ClipkitError(f"{path}: none of its pictures can be used{first}; pass --image-root FOLDER")
    return Source(str(path), records, skipped)
