"""Samples that are hidden without rewriting a tar: ``shard.tar.keep.npz`` beside ``shard.tar``.

``data_prep`` writes such a mask from the scores of a shard's samples; where there is one, on a disk or behind a URL,
``open_shards`` gives the samples that it keeps, and they alone are counted, ordered and fingerprinted.
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipkit.cache import DAMAGED_NPZ, atomic_write
from clipkit.errors import ClipkitError
from clipkit.pairs.index import INDEX_SUFFIX, ShardIndex
from clipkit.pairs.remote import Remote, read_whole

KEEP_SUFFIX = ".keep.npz"
SCORES_SUFFIX = ".scores.parquet"  # what data_prep found out about each sample
SIDECARS = (INDEX_SUFFIX, KEEP_SUFFIX, SCORES_SUFFIX)  # files beside a shard, which are none


def mask_path(shard: Path) -> Path:
    """Where the mask of the shard at ``shard`` lies."""
    return shard.with_name(shard.name + KEEP_SUFFIX)


def write_mask(index: ShardIndex, keep_N: NDArray[np.bool_]) -> None:
    """Hide the samples of a shard where ``keep_N``, bool (N,), is False; a mask that hides none is removed."""
    path = mask_path(_local(index))
    if keep_N.all():
        path.unlink(missing_ok=True)
        return
    with atomic_write(path) as file:
        np.savez(file, header=json.dumps({"keys": _digest(index)}), keep=keep_N)


def kept(index: ShardIndex) -> ShardIndex:
    """``index`` without the samples that the mask beside its shard hides.

    Raises:
        ClipkitError: the mask is damaged, or was made for other samples.
    """
    path: object
    if isinstance(index.path, Remote):
        path = index.path.url + KEEP_SUFFIX
        data = read_whole(index.path.url + KEEP_SUFFIX)
        if data is None:
            return index
        place: Path | io.BytesIO = io.BytesIO(data)
    else:
        path = place = mask_path(index.path)
        if not place.is_file():
            return index
    try:
        with np.load(place, allow_pickle=False) as stored:
            header, keep_N = json.loads(str(stored["header"])), stored["keep"].astype(bool)
            made_for = header["keys"]
    except DAMAGED_NPZ:
        raise ClipkitError(f"{path}: not a mask of samples; delete it, or run `clipkit filter` again") from None
    if made_for != _digest(index) or keep_N.shape != (len(index),):
        raise ClipkitError(f"{path}: made for other samples than the shard has; delete it, or run `clipkit filter`")
    (rows,) = keep_N.nonzero()
    fingerprint = hashlib.blake2b(index.fingerprint.encode() + np.packbits(keep_N).tobytes(), digest_size=16)
    return replace(
        index,
        keys=[index.keys[row] for row in rows],
        extensions=[index.extensions[row] for row in rows],
        spans=index.spans[rows],
        fingerprint=fingerprint.hexdigest(),
    )


def _local(index: ShardIndex) -> Path:
    if isinstance(index.path, Remote):
        raise ClipkitError(f"{index.path}: a shard behind a URL cannot be filtered; copy it to a disk first")
    return index.path


def _digest(index: ShardIndex) -> str:
    return hashlib.blake2b("\n".join(index.keys).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
