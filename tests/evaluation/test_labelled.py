"""Labelled pictures from shards, kept in memory or decoded when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.evaluation import frozen_features, labelled, read_labelled
from clipkit.evaluation.split import split_labels
from clipkit.pairs import PairReader, PictureSpec, ShardSet, decode_image, fit, open_shards

SPEC = PictureSpec(size=16)


@pytest.fixture
def shards(tmp_path: Path, picture: Callable[..., bytes], write_tar: Callable[..., Path]) -> ShardSet:
    """Ten pictures of two classes; the fourth is none."""
    members = []
    for n in range(10):
        members.append((f"{n:03d}.jpg", b"no picture" if n == 3 else picture(n)))
        label = "cat" if n < 5 else "dog \ud83d"  # half an emoji
        members.append((f"{n:03d}.json", json.dumps({"caption": "x", "label": label}).encode()))
    write_tar(tmp_path / "shards" / "000.tar", members)
    return open_shards(tmp_path / "shards")


@pytest.mark.parametrize("limit", [1 << 30, 0])
def test_pictures_labels_and_what_was_left_out(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, limit: int, picture: Callable[..., bytes]
) -> None:
    monkeypatch.setattr(labelled, "IN_MEMORY", limit)
    found = read_labelled(shards, SPEC)
    assert isinstance(found.pictures, torch.Tensor) == bool(limit)
    assert found.labels == ["cat"] * 4 + ["dog \ufffd"] * 5 and len(found.pictures) == 9
    assert len(found.bad) == 1 and "003" in found.bad[0]
    reader = PairReader(shards, None, None, 0)
    assert split_labels(reader, [0, 9]) == ["cat", "dog \ufffd"]
    part = found.part(np.array([8, 3, 0]))
    assert part.labels == ["dog \ufffd", "cat", "cat"] and len(part.pictures) == 3
    views = part.pictures[torch.tensor([2, 0, 1])]
    expected = torch.stack([fit(decode_image(picture(n)), SPEC) for n in (0, 9, 4)])
    assert views.dtype == torch.uint8 and torch.equal(views, expected)
    module = torch.nn.Flatten()
    features = frozen_features(module, lambda batch: module(batch.float()), found.pictures, batch_size=4)
    assert features.shape == (9, 3 * 16 * 16) and (features[8] == expected[1].flatten().numpy()).all()


def test_samples_without_labels_are_named(write_shards: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match=r"000000\.jpg has no label"):
        read_labelled(open_shards(write_shards(tmp_path / "shards", 1, 3)), SPEC)


def test_no_picture_at_all(tmp_path: Path, write_tar: Callable[..., Path]) -> None:
    write_tar(tmp_path / "a" / "0.tar", [("0.jpg", b"no picture"), ("0.json", b'{"caption": "x", "label": "a"}')])
    with pytest.raises(ClipkitError, match="no picture could be read"):
        read_labelled(open_shards(tmp_path / "a"), SPEC)
