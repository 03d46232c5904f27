"""Small pictures and tables for the tests of data_prep."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clipkit.errors import ClipkitError
from data_prep.records import Record
from data_prep.tables import read_table

# orientation 6, and a unit of the resolution that is a text, which Pillow reads but cannot write
DAMAGED_EXIF = b"Exif\0\0II*\0\x08\0\0\0\2\0\x12\1\3\0\1\0\0\0\6\0\0\0\x28\1\2\0\1\0\0\0a\0\0\0\0\0\0\0"


def picture(seed: int = 0, size: tuple[int, int] = (24, 16), format: str = "JPEG", mode: str = "RGB") -> bytes:
    """An encoded picture of noise; equal seeds give equal bytes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, format)
    return buffer.getvalue()


def pictures(folder: Path, n: int, suffix: str = ".jpg") -> list[Path]:
    """``n`` different JPEGs ``0.jpg``, ``1.jpg``, ... in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i}{suffix}" for i in range(n)]
    for i, path in enumerate(paths):
        path.write_bytes(picture(i))
    return paths


def samples(out: Path, split: str = "train") -> dict[str, dict[str, Any]]:
    """Samples of one split: key to ``json``, ``image`` (bytes) and ``ext``."""
    found: dict[str, dict[str, Any]] = {}
    for shard in sorted((out / split).glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                data = file.read()
                if extension == "json":
                    found[key]["json"] = json.loads(data)
                else:
                    found[key] = {"image": data, "ext": extension}
    return found


def tree(out: Path) -> dict[str, bytes]:
    """Every file below ``out`` with its bytes."""
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


def content(out: Path) -> dict[str, bytes]:
    """What must be equal byte for byte when the same is prepared again: all but the indexes, which hold the time of
    change of their tar."""
    return {name: data for name, data in tree(out).items() if not name.endswith(".index.npz")}


def captions(out: Path, split: str = "train") -> list[list[str]]:
    """Captions of the samples of a split, in order."""
    return [sample["json"]["captions"] for sample in samples(out, split).values()]


# For tasks: other processes find them here, and not in a test's module.


def double(n: int) -> int:
    print("a library that prints must not disturb the replies", flush=True)
    return 2 * n


def whose(_: int) -> int:
    return os.getpid()


def bad(n: int) -> int:
    if n == 3:
        raise ClipkitError("three is bad")
    return n


def die_once(mark: str) -> str:
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Slow:
    """A picture that takes a moment, and keeps a note of being read."""

    seed: int

    def __call__(self) -> bytes:
        time.sleep(0.002)
        return picture(self.seed, size=(64, 64))


def wait_for(flag: str) -> None:
    """A task that says which process runs it, takes a minute, and says when it is done."""
    with open(f"{flag}.tmp", "w") as file:
        file.write(str(os.getpid()))
    os.replace(f"{flag}.tmp", f"{flag}.pid")
    time.sleep(60)
    Path(f"{flag}.done").touch()


def records(n: int) -> list[Record]:
    """``n`` records of two captions and a label."""
    return [Record(f"{i:06d}", picture(i), (f"caption {i}", f"other {i}"), {"label": i % 3}) for i in range(n)]


def table(folder: Path, text: str, name: str = "captions.csv", encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def said(path: Path, **options: object) -> dict[str, tuple[str, ...]]:
    """File name to captions."""
    return {Path(r.name).name: r.captions for r in read_table(path, **options).records}  # type: ignore[arg-type]
