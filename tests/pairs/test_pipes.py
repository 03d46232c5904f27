"""Pipes: what comes out of a command is trained on, under numbers of its own, and what is not promised is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.pairs import Order, PairBatch, PairReader, PipeSet, ShardSet, decode_image, is_pipe
from clipkit.pairs.stream import stream

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))


def picture(shards: ShardSet, sample: int, seed: int) -> torch.Tensor:
    return decode_image(shards.read_picture(sample), shards.where(sample)).float().mean((1, 2))


def texts(chosen: list[tuple[int, int, str]]) -> torch.Tensor:
    return torch.tensor([int(text.split()[0]) for _, _, text in chosen])


def read(path: str, steps: int, **of_stream: Any) -> list[PairBatch]:
    pipes = PipeSet(path, steps * 10)
    reader = PairReader(pipes, picture, texts, seed=0)
    return list(stream(reader, Order(pipes.sizes, 0), 10, stop=steps, **of_stream))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, write_shards: Callable[..., Path]) -> Path:
    return write_shards(tmp_path_factory.mktemp("pipes"), 4, 20, bad=[5])


def test_what_is_a_pipe() -> None:
    assert is_pipe("pipe:cat a.tar") and not is_pipe("a.tar") and not is_pipe(Path("pipe"))


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_come_out_with_their_captions(folder: Path, workers: int) -> None:
    batches = read(f"pipe:cat {folder}/{{000000..000003}}.tar", 8, workers=workers)
    seen = [n for b in batches for n in b.texts.tolist()]
    assert len(seen) == 80 and len(set(seen)) > 40 and set(seen) <= set(range(80)) - {5}
    for step, batch in enumerate(batches):
        assert all(10 * step <= i < 10 * step + 10 for i in batch.image_ids.tolist())
        assert batch.image_ids.tolist() == batch.text_ids.tolist()


def test_ranks_have_numbers_of_their_own(folder: Path) -> None:
    path = f"pipe:cat {folder}/000001.tar"  # one pipe for two ranks
    one, other = (read(path, 4, rank=rank, world=2) for rank in (0, 1))
    for a, b in zip(one, other, strict=True):
        assert len(a.image_ids) == len(b.image_ids) == 5 and not set(a.image_ids.tolist()) & set(b.image_ids.tolist())
    assert {n % 2 for b in one for n in b.texts.tolist()} == {0} and {
        n % 2 for b in other for n in b.texts.tolist()
    } == {1}


def test_bad_samples_are_replaced_and_named(folder: Path) -> None:
    batches = read(f"pipe:cat {folder}/000000.tar", 6)
    bad = [b for batch in batches for b in batch.bad]
    assert bad and all("000005" in b.where for b in bad)
    assert all(len(batch.image_ids) == 10 for batch in batches)


def test_a_mistake_in_a_reading_process_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match=r"not one sample came out of the pipe") as raised:
        read(f"pipe:cat {tmp_path}/nothing.tar", 1, workers=1)
    assert "\n" not in str(raised.value)


def test_pipes_without_a_sample(tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match="not one sample"), pytest.warns(UserWarning):
        read(f"pipe:cat {tmp_path}/nothing.tar", 1)
    with pytest.raises(ClipkitError, match="make shards"):
        PipeSet("pipe:cat a.tar", 10).read(3)


def test_a_run_from_a_pipe(folder: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from training_helpers import flags, losses, make_config

    from clipkit.train import main

    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    settings = {
        "recipe": "clip", "train_data": f"pipe:cat {folder}/{{000000..000003}}.tar", "batch_size": 20, "log_every": 1,
        "model": make_config(tmp_path / "tiny.json"), "output": tmp_path / "run", "workers": 0,
    }  # fmt: skip
    threads = torch.get_num_threads()
    try:
        assert main(flags(settings)) == 2
        assert "--max-steps" in capsys.readouterr().err
        assert main(flags({**settings, "max_steps": 5})) == 0
        assert "a resumed run starts the pipes again" in capsys.readouterr().out
        assert sorted(losses(tmp_path / "run")) == [1, 2, 3, 4, 5]
        assert main(flags({**settings, "max_steps": 5, "lock_text": True, "overwrite": True})) == 2
        assert "locked" in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)
