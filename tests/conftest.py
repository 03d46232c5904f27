"""Fixtures shared by the tests: pictures made on the spot, shards written with the standard library."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: as many processes as cores are at work already
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no test needs a network


def _picture(seed: int = 0, size: tuple[int, int] = (40, 30), ext: str = "jpg") -> bytes:
    from PIL import Image

    colour = np.random.default_rng(seed).integers(0, 256, 3)
    pixels = np.broadcast_to(colour, (size[1], size[0], 3)).astype(np.uint8).copy()
    pixels[: size[1] // 2, : size[0] // 2] = 255 - colour
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if ext == "jpg" else ext.upper())
    return buffer.getvalue()


def _write_tar(path: Path, members: Sequence[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="session")
def picture() -> Callable[..., bytes]:
    """``picture(seed, (width, height), ext)``: an encoded two-coloured picture."""
    return _picture


@pytest.fixture(scope="session")
def write_tar() -> Callable[..., Path]:
    """``write_tar(path, [(name, bytes), ...], format)``: a tar made by tarfile."""
    return _write_tar


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    """``write_shards(folder, shards, per_shard, bad=())``: shards whose sample n has captions ``n a`` and ``n b`` and
    a picture of its own; samples in ``bad`` hold no picture but text."""

    def write(folder: Path, shards: int, per_shard: int, bad: Sequence[int] = ()) -> Path:
        for shard in range(shards):
            members = []
            for n in range(shard * per_shard, (shard + 1) * per_shard):
                members.append((f"{n:06d}.jpg", b"no picture" if n in bad else _picture(n, (12, 10))))
                members.append((f"{n:06d}.json", json.dumps({"captions": [f"{n} a", f"{n} b"]}).encode()))
            _write_tar(folder / f"{shard:06d}.tar", members)
        return folder

    return write
