"""Picture files, read once each: what is in them, and their embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from clipkit.encoders.side_by_side import CPU_PICTURES, side_by_side
from clipkit.errors import ClipkitError
from clipkit.inference.aligner import Aligner
from clipkit.inference.items import escaped, is_text
from clipkit.inference.pictures import encoded_pixels, read_file
from clipkit.pairs.index import IMAGE_EXTENSIONS


@dataclass(frozen=True)
class PictureFile:
    """A file as it was when it was read.

    Attributes:
        path: the file.
        content: hash of its bytes, 32 hex digits; empty if it could not be read.
        size: bytes.
        mtime: time of its last change, in ns since 1970.
        row: float32 (D,) embedding; None if it was not asked for, or there is none.
        error: why it cannot be used, or None.
    """

    path: Path
    content: str = ""
    size: int = -1
    mtime: int = -1
    row: NDArray[np.float32] | None = None
    error: str | None = None


def find_pictures(folder: Path) -> list[Path]:
    """The picture files in ``folder``, to the bottom, in order.

    Raises:
        ClipkitError: no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise ClipkitError(f"{folder}: no such folder of pictures")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS and p.is_file())
    if not paths:
        raise ClipkitError(f"{folder}: no picture in it ({', '.join(IMAGE_EXTENSIONS)})")
    return paths


def embed_files(
    model: Aligner, paths: Sequence[Path], is_known: Callable[[str], bool] = lambda content: False
) -> Iterator[PictureFile]:
    """Every file of ``paths`` in order; those whose content ``is_known`` are read and hashed, but not encoded."""

    def run(part: Sequence[Path]) -> list[PictureFile]:
        files: list[PictureFile] = []
        pixels: dict[int, torch.Tensor] = {}
        for path in part:
            if not is_text(path):
                files.append(PictureFile(path, error=f"{escaped(str(path))}: its name is not UTF-8; rename it"))
                continue
            try:
                stat, data = path.stat(), read_file(path)
            except OSError as error:
                files.append(PictureFile(path, error=f"{path}: {error.strerror}"))
                continue
            except ClipkitError as error:
                files.append(PictureFile(path, error=str(error)))
                continue
            content = hashlib.blake2b(data, digest_size=16).hexdigest()
            file = PictureFile(path, content, stat.st_size, stat.st_mtime_ns)
            if not is_known(content):
                try:
                    pixels[len(files)] = encoded_pixels(data, str(path), model.model.picture)
                except ClipkitError as error:
                    file = replace(file, error=str(error))
            files.append(file)
        if pixels:
            rows = model.encode_pixels(torch.stack(list(pixels.values())))
            for place, row in zip(pixels, rows, strict=True):
                files[place] = replace(files[place], row=row)
        return files

    for _, files in side_by_side(run, paths, model.model.device, CPU_PICTURES):
        yield from files
