"""What sources yield and what a preparation reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Record:
    """One picture with everything that is said about it.

    Attributes:
        key: name of the sample; made safe for a tar and unique when it is written.
        image: the encoded picture, or the file that holds it, or a function that returns its bytes.
        captions: at least one caption, distinct, in the source's order.
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

    ``row`` says that it is one row of a table (a caption) and not a whole picture.
    """

    file: str
    reason: str
    row: bool = False


@dataclass(frozen=True)
class Source:
    """All records of a source, what was left out while reading it, and how to name it in messages."""

    name: str
    records: list[Record]
    skipped: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True)
class SplitSummary:
    """Size of one split: samples (pictures), shards (tar files) and captions."""

    samples: int
    shards: int
    captions: int


@dataclass(frozen=True)
class Summary:
    """What a preparation did. ``skipped`` counts what was left out; all of it is listed in
    ``skipped_file``."""

    out: Path
    splits: dict[str, SplitSummary]
    skipped: int
    first_skipped: tuple[Skipped, ...]
    skipped_file: Path | None
    fingerprint: str
    seconds: float

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
        lines = [f"{self.out}: {self.samples:,} pictures in {self.seconds:.1f} s"]
        for name, split in self.splits.items():
            lines.append(f"  {name}: {split.samples:,} pictures, {split.captions:,} captions, {split.shards} shard(s)")
        if self.skipped:
            lines.append(f"  skipped: {self.skipped:,} (all of them with the reason in {self.skipped_file})")
            lines += [f"    {skipped.file}: {skipped.reason}" for skipped in self.first_skipped]
        return "\n".join(lines)
