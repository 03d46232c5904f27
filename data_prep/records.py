"""What sources yield and what a preparation reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipkit.errors import ClipkitError

# What Pillow cannot read everywhere (HEIC) is among them, so that it is listed and not passed over.
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic", ".heif"),
)
SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
"""Names of folders -> the split that they hold."""


class MendableError(ClipkitError):
    """A picture that may be there another time: a server that did not answer. A second run tries again."""


@dataclass(frozen=True)
class FileSlice:
    """A picture that lies inside a file, such as a tar: its bytes when called."""

    path: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) != self.size:
            raise ClipkitError(f"{self.path} has changed: it ends inside this picture")
        return data


@dataclass(frozen=True)
class Record:
    """One picture with everything that is said about it.

    Attributes:
        key: name of the sample; made safe for a tar and unique when it is written.
        image: the encoded picture, or the file that holds it, or a function that returns its bytes. A function is
            sent to other processes with its values, so it is a frozen dataclass with ``__call__``, whose ``repr``
            tells it from others; its ``path``, if it has one, is the file whose change it would notice.
        captions: distinct, in the source's order; none only where captions were said to be optional.
        meta: what else is known (``label``, ``group``, ``file``, ...); must survive JSON.
        split: ``train``, ``val`` or ``test`` where the source knows it, else None.
    """

    key: str
    image: Path | bytes | Callable[[], bytes]
    captions: tuple[str, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    split: str | None = None

    @property
    def name(self) -> str:
        """What to call the picture in a message: its path, or its key."""
        return str(self.image) if isinstance(self.image, Path) else str(self.meta.get("file") or self.key)


@dataclass(frozen=True)
class Skipped:
    """Something in the source that did not become a sample, and why.

    ``row`` says that it is one row of a table (a caption) and not a whole picture. ``kind`` is ``bad`` for what
    cannot be used, ``mendable`` for what may be there another time, ``copy`` for a picture that is there already,
    ``evaluation`` for one that an evaluation set holds and ``unseen`` for one of such a set that cannot be read.
    """

    file: str
    reason: str
    row: bool = False
    kind: str = "bad"


def unseen(file: str, reason: str) -> Skipped:
    """What is said of a picture of an evaluation set that cannot be read."""
    return Skipped(file, f"in an evaluation set, and cannot be read ({reason}): training may hold it", kind="unseen")


@dataclass(frozen=True)
class Source:
    """All records of a source, what was left out while reading it, how to name it in messages, and what else
    ``dataset.json`` should say of it."""

    name: str
    records: list[Record]
    skipped: list[Skipped] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SplitSummary:
    """Size of one split: samples (pictures), shards (tar files) and captions."""

    samples: int
    shards: int
    captions: int


@dataclass(frozen=True)
class Summary:
    """What a preparation did. ``skipped`` counts what was left out, all of it listed in ``skipped_file``;
    ``mendable`` of these are tried again by a second run. ``copies`` counts pictures that are copies of an earlier
    one. ``reused`` says that all of it was there already; ``empty`` are splits that were asked for and got nothing."""

    out: Path
    splits: dict[str, SplitSummary]
    skipped: int
    first_skipped: tuple[Skipped, ...]
    skipped_file: Path | None
    fingerprint: str
    seconds: float
    copies: int = 0
    mendable: int = 0
    reused: bool = False
    empty: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Samples of all splits."""
        return sum(split.samples for split in self.splits.values())

    def to_dict(self) -> dict[str, Any]:
        """The summary as plain JSON values."""
        return {
            **asdict(self),
            "out": str(self.out),
            "skipped_file": str(self.skipped_file) if self.skipped_file else None,
        }

    def __str__(self) -> str:
        when = "there already, made of the same in the same way" if self.reused else f"in {self.seconds:.1f} s"
        lines = [f"{self.out}: {self.samples:,} pictures, {when}"]
        for name, split in self.splits.items():
            lines.append(f"  {name}: {split.samples:,} pictures, {split.captions:,} captions, {split.shards} shard(s)")
        for name in self.empty:
            lines.append(f"  {name}: no picture; there are few of them, or the source's own splits left none for it")
        if self.copies:
            lines.append(f"  copies: {self.copies:,} pictures are copies of others; all copies lie in one split")
        if self.skipped:
            lines.append(f"  skipped: {self.skipped:,} (all of them with the reason in {self.skipped_file})")
            lines += [f"    {skipped.file}: {skipped.reason}" for skipped in self.first_skipped]
        if self.mendable:
            lines.append(f"  {self.mendable:,} of these may be there another time: the same command tries them again")
        return "\n".join(lines)
