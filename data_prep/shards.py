"""Records to WebDataset shards: every picture checked, bad ones listed, the result whole or absent.

On disk: ``OUT/train/000000.tar`` and so on for each split that has samples, ``OUT/skipped.jsonl`` with what
was left out and why, and, written last, ``OUT/dataset.json``: a data set without it is not whole. Everything
is made in ``OUT/.partial`` and moved into place at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.cache import atomic_write, sync_folder
from clipkit.errors import ClipkitError
from data_prep.images import checked_image
from data_prep.records import SPLITS, Record, Skipped, SplitSummary, Summary
from data_prep.tars import SplitWriter, sample_json

DATASET_FORMAT = 1
_WINDOW = 16  # pictures in flight per worker: enough to keep them busy, few enough to fit in memory


@dataclass(frozen=True)
class SplitRule:
    """Random split of records that have none: shares of validation and test, and the seed.

    The split is a hash of the seed and the picture's bytes, so pictures that are equal byte for byte never
    lie in different splits, and a picture keeps its split when others come or go.
    """

    val: float = 0.0
    test: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.val < 1 and 0 <= self.test < 1 and self.val + self.test < 1):
            raise ClipkitError(
                f"--split-val {self.val}, --split-test {self.test}: expected shares from 0 to 1 that sum to less than 1"
            )

    def __call__(self, content: bytes) -> str:
        """Split of the picture whose bytes have the digest ``content``."""
        digest = hashlib.blake2b(f"{self.seed} ".encode() + content, digest_size=8).digest()
        at = int.from_bytes(digest, "big") / 2**64
        return "test" if at < self.test else "val" if at < self.test + self.val else "train"


@dataclass(frozen=True)
class _Checked:
    image: bytes
    extension: str
    content: bytes  # digest of the picture's bytes as the source has them


def write_shards(
    records: Iterable[Record],
    out: str | Path,
    samples_per_shard: int = 1000,
    verify: bool = True,
    workers: int = 2,
    *,
    split: SplitRule | None = None,
    skipped: Sequence[Skipped] = (),
    max_bad_fraction: float = 0.5,
    source: str = "",
    license: str | None = None,
    details: dict[str, Any] | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
) -> Summary:
    """Write ``records`` as shards below ``out``; the same records give the same bytes.

    Args:
        records: what to write, in order. Their own split goes before ``split``; without either they are
            ``train``.
        out: a folder that does not exist yet, or is empty, or holds a preparation that was interrupted.
        samples_per_shard: pictures in a tar.
        verify: decode each picture; without it only its format is looked at.
        workers: threads that read and check pictures (Pillow decodes outside Python's lock).
        split: how to split records that have no split.
        skipped: what the source left out already, to be counted and listed with what is left out here.
        max_bad_fraction: above this share of pictures (or of a table's rows) left out, nothing is written.
        source, license, details: for ``dataset.json``.
        overwrite: replace a whole data set that is at ``out``.
        show_progress: a progress bar on the error stream.

    Raises:
        ClipkitError: ``out`` is in use, no picture is good, or too many are bad.
    """
    started = time.perf_counter()
    if samples_per_shard < 1:
        raise ClipkitError(f"--samples-per-shard {samples_per_shard}: expected at least 1")
    out = Path(out)
    partial = _claim(out, overwrite)
    listed = list(skipped)
    writers: dict[str, SplitWriter] = {}
    labels: dict[Any, None] = {}
    used: set[str] = set()
    fingerprint = hashlib.blake2b(digest_size=16)
    try:
        for record, checked in _progress(_checked(records, verify, workers), records, show_progress):
            if isinstance(checked, Skipped):
                listed.append(checked)
                continue
            where = record.split or (split(checked.content) if split else "train")
            if where not in writers:
                writers[where] = SplitWriter(partial / where, samples_per_shard)
            key = _unique(_safe_key(record.key), used)
            text = sample_json(record.captions, record.meta)
            writers[where].write(key, checked.image, checked.extension, text, len(record.captions))
            if (label := record.meta.get("label")) is not None:
                labels[label] = None
            stored = hashlib.blake2b(checked.image, digest_size=16).digest()
            fingerprint.update(f"{where}/{key}.{checked.extension}\n".encode() + stored + text + b"\n")
        for writer in writers.values():
            writer.close()
    finally:
        for writer in writers.values():
            writer.abandon()
    splits = {
        name: SplitSummary(writers[name].samples, writers[name].shards, writers[name].captions)
        for name in SPLITS
        if name in writers
    }
    try:
        _check_share(splits, listed, max_bad_fraction, source or str(out))
    except ClipkitError:
        shutil.rmtree(partial)
        if not any(out.iterdir()):
            out.rmdir()
        raise
    dataset = {
        "format": DATASET_FORMAT,
        "splits": {name: vars(summary) for name, summary in splits.items()},
        "source": source,
        "fingerprint": fingerprint.hexdigest(),
        "labels": sorted(labels, key=str) or None,
        "license": license,
        "skipped": len(listed),
        **(details or {}),
    }
    _publish(out, partial, dataset, listed)
    return Summary(
        out,
        splits,
        len(listed),
        tuple(listed[:5]),
        out / "skipped.jsonl" if listed else None,
        fingerprint.hexdigest(),
        time.perf_counter() - started,
    )


def is_whole(out: str | Path) -> bool:
    """Whether the data set at ``out`` was finished."""
    return (Path(out) / "dataset.json").is_file()


def _claim(out: Path, overwrite: bool) -> Path:
    """Check that ``out`` may be written to, clear what an interrupted preparation left, and return its work
    folder."""
    partial = out / ".partial"
    if out.exists() and not out.is_dir():
        raise ClipkitError(f"{out}: a file of that name exists; choose another folder")
    if is_whole(out) and not overwrite:
        raise ClipkitError(f"{out} holds a data set already; choose another folder, or pass --overwrite")
    if out.is_dir() and any(out.iterdir()) and not is_whole(out) and not partial.is_dir():
        raise ClipkitError(f"{out} is not empty and holds no data set of ours; choose another folder")
    partial.mkdir(parents=True, exist_ok=True)  # from here on, what lies in out was put there by a preparation
    (out / "dataset.json").unlink(missing_ok=True)
    for leftover in [*(out / name for name in SPLITS), *partial.iterdir()]:
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink(missing_ok=True)
    (out / "skipped.jsonl").unlink(missing_ok=True)
    return partial


def _publish(out: Path, partial: Path, dataset: dict[str, Any], skipped: list[Skipped]) -> None:
    """Move the finished shards into place; ``dataset.json`` comes last."""
    if skipped:
        with atomic_write(out / "skipped.jsonl") as file:
            for entry in skipped:
                line = json.dumps({"file": entry.file, "reason": entry.reason}, ensure_ascii=False)
                file.write(line.encode("utf-8", "backslashreplace") + b"\n")
    for name in dataset["splits"]:
        os.replace(partial / name, out / name)
    sync_folder(out)
    with atomic_write(out / "dataset.json") as file:
        file.write(json.dumps(dataset, ensure_ascii=False, indent=1).encode() + b"\n")
    shutil.rmtree(partial, ignore_errors=True)


def _checked(records: Iterable[Record], verify: bool, workers: int) -> Iterator[tuple[Record, _Checked | Skipped]]:
    """Each record with its checked picture, in the order of ``records``, a few ahead in threads."""
    with ThreadPoolExecutor(max(1, workers)) as pool:
        waiting: deque[tuple[Record, Future[_Checked | Skipped]]] = deque()
        try:
            for record in records:
                waiting.append((record, pool.submit(_check, record, verify)))
                if len(waiting) >= max(1, workers) * _WINDOW:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()


def _check(record: Record, verify: bool) -> _Checked | Skipped:
    try:
        if isinstance(record.image, Path):
            data = record.image.read_bytes()
        else:
            data = record.image if isinstance(record.image, bytes) else record.image()
        image, extension = checked_image(data, verify)
    except ClipkitError as error:
        return Skipped(record.name, str(error))
    except OSError as error:
        return Skipped(record.name, f"cannot be read ({error.strerror or error})")
    return _Checked(image, extension, hashlib.blake2b(data, digest_size=16).digest())


def _safe_key(key: str) -> str:
    """``key`` with everything replaced that ends a key (a dot), makes a folder (a slash) or is not plain
    ASCII."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", key).strip("_")[:100] or "sample"


def _unique(key: str, used: set[str]) -> str:
    """``key``, or with a number behind it when it is taken (also where a file system ignores case)."""
    candidate, n = key, 1
    while candidate.lower() in used:
        n += 1
        candidate = f"{key}-{n}"
    used.add(candidate.lower())
    return candidate


def _check_share(splits: dict[str, SplitSummary], skipped: list[Skipped], limit: float, source: str) -> None:
    samples = sum(split.samples for split in splits.values())
    captions = sum(split.captions for split in splits.values())
    rows = sum(entry.row for entry in skipped)
    first = f"{skipped[0].file}: {skipped[0].reason}" if skipped else "there are no records"
    if not samples:
        raise ClipkitError(f"{source}: not one good picture ({first}); check the files")
    for bad, good, what in ((len(skipped) - rows, samples, "pictures"), (rows, captions, "rows")):
        if bad / (bad + good) > limit:
            raise ClipkitError(
                f"{source}: {bad:,} of {bad + good:,} {what} cannot be used ({first}); "
                f"mend them, or pass --max-bad-fraction 1 to go on without them"
            )


def _progress(
    items: Iterator[tuple[Record, _Checked | Skipped]], records: Iterable[Record], show: bool
) -> Iterator[tuple[Record, _Checked | Skipped]]:
    if not show:
        return items
    from tqdm import tqdm

    return iter(tqdm(items, total=len(records) if isinstance(records, Sequence) else None, unit=" pictures"))
