"""The second shard task: a tar that is equal byte for byte whenever its samples are, with the table of its scores.

Nothing in a tar depends on the clock, the user or the machine: the times are 0, the owner is 0, the mode is 0644, and
the members of a sample lie side by side, the picture first. (``webdataset.TarWriter`` writes the owner's name and,
unless told, the time; what is written here is what it would read.)
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.cache import atomic_write
from data_prep.scores import Measured, scores_path, write_scores


@dataclass(frozen=True)
class Member:
    """A sample of a shard: its place in a piece's file, and what is said about it. ``sides`` are width and height as
    stored and as the source has them, ``content`` is the digest of the source's bytes."""

    key: str
    captions: tuple[str, ...]
    meta: dict[str, Any]
    piece: Path
    offset: int
    size: int
    extension: str
    sides: tuple[int, ...]
    content: bytes
    copy_of: str | None


@dataclass(frozen=True)
class ShardTask:
    """One tar to write at ``path``, with a receipt that says it is there; ``languages`` also finds out in which
    language each sample's captions are."""

    path: Path
    receipt: Path
    members: tuple[Member, ...]
    languages: bool

    @property
    def inputs(self) -> str:
        """Digest of all that the shard depends on."""
        digest = hashlib.blake2b(f"{self.languages}".encode(), digest_size=16)
        for m in self.members:
            said = [m.key, m.extension, m.size, m.sides, m.copy_of]
            digest.update(json.dumps(said).encode() + m.content + sample_json(m.captions, m.meta))
        return digest.hexdigest()


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Write the tar, its table and, last, its receipt, which is returned; free if that was done before."""
    inputs = task.inputs
    known = _read_receipt(task)
    if known is not None and known["inputs"] == inputs:
        return known
    digest = hashlib.blake2b(digest_size=16)
    measured = []
    with atomic_write(task.path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in task.members:
            image = _read(member)
            text = sample_json(member.captions, member.meta)
            _add(tar, f"{member.key}.{member.extension}", image)
            _add(tar, f"{member.key}.json", text)
            stored = hashlib.blake2b(image, digest_size=16).digest()
            digest.update(f"{member.key}.{member.extension}\n".encode() + stored + text + b"\n")
            measured.append(_measured(member))
    write_scores(task.path, measured, task.languages)
    receipt = {
        "inputs": inputs,
        "fingerprint": digest.hexdigest(),
        "samples": len(task.members),
        "captions": sum(len(member.captions) for member in task.members),
        "bytes": task.path.stat().st_size,
    }
    with atomic_write(task.receipt) as file:
        file.write(json.dumps(receipt).encode() + b"\n")
    return receipt


def sample_json(captions: tuple[str, ...], meta: dict[str, Any]) -> bytes:
    """The ``.json`` of a sample: ``{"captions": [...], ...meta}``, UTF-8, in the order of ``meta``."""
    rest = {name: value for name, value in meta.items() if name not in ("captions", "caption")}
    return json.dumps({"captions": list(captions), **rest}, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _read_receipt(task: ShardTask) -> dict[str, Any] | None:
    """The receipt of ``task``, if there is one and the shard and its table are there."""
    try:
        receipt: dict[str, Any] = json.loads(task.receipt.read_bytes())
        whole = task.path.stat().st_size == receipt["bytes"]
        whole = whole and scores_path(task.path).stat().st_size > 0  # a model may have written more into it since
    except (OSError, ValueError, KeyError):
        return None
    return receipt if whole else None


def _read(member: Member) -> bytes:
    with open(member.piece, "rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # time and owner are 0 and the mode 0644 unless set
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def _measured(member: Member) -> Measured:
    label = member.meta.get("label")
    return Measured(member.key, member.captions, member.sides, member.size, member.copy_of, label)
