"""Fixtures shared by the tests: pictures made on the spot, shards written with the standard library."""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: as many processes as cores are at work already
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports huggingface_hub: no test needs a network

sys.path.insert(0, str(Path(__file__).parent / "training"))  # training_helpers: a small table and a tiny model
sys.path.insert(0, str(Path(__file__).parent))  # worlds: the same cases on many processes
Cli = Callable[..., tuple[int, str, str]]
_LONGEST = (
    "training/test_two_processes.py", "training/test_resume.py", "test_readme.py", "objectives/test_family_ranks.py",
    "test_methods.py", "objectives/test_ranks.py", "objectives/test_memory.py", "inference/test_index_update.py",
    "training/test_strategy.py", "training/test_methods.py", "demos/test_browser.py", "data_prep/test_openmoji.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no core waits for the last of them."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


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


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from training_helpers import make_table

    return make_table(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, table: Path) -> Path:
    """A run that has seen its sixty pictures often enough to know them."""
    import torch
    from training_helpers import make_config

    import clipkit

    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    root = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(root / "cache"))
        clipkit.train(
            "clip", train_data=str(table), val_data=str(table), model=str(make_config(root / "tiny.json")), lr=3e-3,
            batch_size=30, epochs=20, eval_every=40, workers=0, output=str(root / "run"),
        )  # fmt: skip
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)
    return root / "run"


@pytest.fixture
def cli(capfd: Any) -> Cli:
    """``cli("search", "a bird", ...)``: exit status, standard output, standard error."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        from clipkit.cli import main

        capfd.readouterr()
        try:
            status = main([str(a) for a in arguments])
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture
def mistake(cli: Cli) -> Callable[..., str]:
    """The one line of a mistake: exit status 2, nothing on standard output, no traceback."""

    def call(*arguments: Any) -> str:
        status, out, err = cli(*arguments)
        assert status == 2, (status, out, err)
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith("clipkit: "), err
        assert "Traceback" not in out + err
        return lines[0]

    return call
