"""A mask hides samples without a change to the tar, and is never applied to other samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipkit.errors import ClipkitError
from clipkit.pairs import mask
from clipkit.pairs.index import load_index
from clipkit.pairs.mask import mask_path, write_mask
from clipkit.pairs.shards import open_shards

Write = Callable[..., Path]


def hide(shard: Path, rows: list[int]) -> None:
    index = load_index(shard)
    keep = np.ones(len(index), bool)
    keep[rows] = False
    write_mask(index, keep)


def test_masked_samples_are_gone_and_come_back(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 2, 4)
    before = open_shards(folder)
    tar = (folder / "000001.tar").read_bytes()
    hide(folder / "000001.tar", [0, 2])
    masked = open_shards(folder)
    assert [s.key for s in masked] == [f"{n:06d}" for n in (0, 1, 2, 3, 5, 7)]
    assert masked.read(4).captions == ("5 a", "5 b") and masked.key(5) == "000007"
    assert masked.fingerprint != before.fingerprint
    hide(folder / "000001.tar", [1, 2])
    assert open_shards(folder).fingerprint not in (before.fingerprint, masked.fingerprint)
    hide(folder / "000001.tar", [])
    assert open_shards(folder).fingerprint == before.fingerprint and not mask_path(folder / "000001.tar").exists()
    assert (folder / "000001.tar").read_bytes() == tar


def test_a_glob_over_everything_takes_tars_only(tmp_path: Path, write_shards: Write) -> None:
    folder = write_shards(tmp_path / "s", 2, 2)
    hide(folder / "000000.tar", [0])
    (folder / "000000.tar.scores.parquet").write_bytes(b"")
    assert len(open_shards(f"{folder}/*")) == 3


def test_masks_that_do_not_fit_are_refused(tmp_path: Path, write_shards: Write) -> None:
    folder, other = write_shards(tmp_path / "s", 1, 3), write_shards(tmp_path / "t", 1, 4)
    hide(folder / "000000.tar", [0])
    mask_path(folder / "000000.tar").rename(mask_path(other / "000000.tar"))
    with pytest.raises(ClipkitError, match=r"keep.npz: made for other samples.*delete it"):
        open_shards(other)
    mask_path(other / "000000.tar").write_bytes(b"junk")
    with pytest.raises(ClipkitError, match=r"keep.npz: not a mask"):
        open_shards(other)
    hide(other / "000000.tar", [0])
    whole = mask_path(other / "000000.tar").read_bytes()
    for at in range(0, len(whole), 3):
        mask_path(other / "000000.tar").write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        try:
            assert len(open_shards(other)) == 3
        except ClipkitError as error:
            assert "keep.npz: not a mask" in str(error)
    keys = mask._digest(load_index(other / "000000.tar"))
    with open(mask_path(other / "000000.tar"), "wb") as file:
        np.savez(file, header=json.dumps({"keys": keys}), keep=np.ones(9, bool))
    with pytest.raises(ClipkitError, match=r"keep.npz: made for other samples"):
        open_shards(other)
    hide(folder / "000000.tar", [0, 1, 2])
    with pytest.raises(ClipkitError, match=r"filters hide every sample; run `clipkit filter`"):
        open_shards(folder)
