"""What goes wrong in a run: one line that names it, and what was good stays good."""

from __future__ import annotations

import errno
import io
import json
import multiprocessing
import os
import shutil
import signal
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from training_helpers import draw, losses, make_table, one_line, records, steps, weights

from clipkit.inference import Index
from clipkit.training import checkpoint, loop, quarantine

NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_shards(folder: Path, n: int, bad: Iterable[int] = (), mute: Iterable[int] = ()) -> Path:
    """Two shards of n samples; pictures in ``bad`` are text, samples in ``mute`` have only an empty caption."""
    folder.mkdir(parents=True, exist_ok=True)
    bad, mute = set(bad), set(mute)
    colours = ["red", "green", "blue", "yellow", "white"]
    for shard in range(2):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for i in range(shard * n // 2, (shard + 1) * n // 2):
                buffer = io.BytesIO()
                draw(colours[i % 5], "plain", i).save(buffer, "PNG")
                captions = ["  "] if i in mute else [f"a {colours[i % 5]} plain {i}"]
                for name, data in (
                    (f"{i:04d}.png", b"no picture" if i in bad else buffer.getvalue()),
                    (f"{i:04d}.json", json.dumps({"captions": captions}).encode()),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def quarantined(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "quarantine.jsonl").read_text().splitlines()]


def after(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, calls: int, then: Callable[..., Any]) -> None:
    """``module.name`` works ``calls`` times; later calls go to ``then``."""
    real, made = getattr(module, name), [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        return (real if made[0] <= calls else then)(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapped)


@pytest.mark.parametrize(
    ("function", "error"),
    [
        ("save_file", NO_SPACE),
        ("save_file", SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")),
        ("save_config", NO_SPACE),
    ],
)
def test_a_full_disk_leaves_earlier_checkpoints_whole(
    run_here: Any, tmp_path: Path, monkeypatch: Any, capsys: Any, function: str, error: Exception, steady: None
) -> None:
    run = tmp_path / "run"
    assert run_here(run, epochs=1) == 0
    before = {p: p.read_bytes() for p in (run / "checkpoints" / "step-3").iterdir()}
    capsys.readouterr()

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, function, full)
        assert run_here(run, epochs=2, resume="auto") == 2
    said = one_line(capsys.readouterr().err)
    assert "o space left" in said and "step-6" in said and "--resume auto" in said
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-3"], "the half one is gone"
    assert {p: p.read_bytes() for p in (run / "checkpoints" / "step-3").iterdir()} == before
    if function == "save_config":
        assert run_here(run, epochs=2, resume="auto") == 0
        assert steps(run)[-1] == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_too_full_for_a_metric_line(run_here: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    run = tmp_path / "run"

    def fill(*args: Any, **kwargs: Any) -> Any:
        (run / "metrics.jsonl").unlink()
        (run / "metrics.jsonl").symlink_to("/dev/full")
        return real(*args, **kwargs)

    real = loop.train_step
    after(monkeypatch, loop, "train_step", 4, fill)
    assert run_here(run) == 2
    said = one_line(capsys.readouterr().err)
    assert "metrics.jsonl" in said or "o space left" in said
    assert steps(run) == [3]


def test_a_folder_that_cannot_be_made(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "file").write_text("")
    assert run_here(tmp_path / "file" / "run", max_steps=1) == 2
    assert str(tmp_path / "file") in one_line(capsys.readouterr().err)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    run_here: Any, tmp_path: Path, monkeypatch: Any, capsys: Any, value: float
) -> None:
    run = tmp_path / "run"
    real = loop.train_step

    def broken(model: Any, batch: Any, compare: Any, objective: Any, *args: Any, **kwargs: Any) -> Any:
        return real(model, batch, compare, lambda c: objective(c) * value, *args, **kwargs)

    after(monkeypatch, loop, "train_step", 4, broken)
    assert run_here(run) == 2
    said = one_line(capsys.readouterr().err)
    assert "loss" in said and str(value) in said and "--lr" in said
    assert steps(run) == [3] and max(losses(run)) == 4
    assert all(torch.isfinite(t).all() for t in weights(run / "checkpoints" / "step-3").values())


def test_a_rate_that_blows_up_is_a_message(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    """float32 overflows by itself: no patch."""
    status = run_here(tmp_path / "run", lr=1e30, grad_clip=0, warmup=0)
    assert status == 2
    assert "--lr" in one_line(capsys.readouterr().err)


def test_a_killed_reading_process_is_replaced(run_here: Any, tmp_path: Path, monkeypatch: Any, steady: None) -> None:
    """The run goes on with what it would have read, and ends with the same losses."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.2,))
    assert run_here(tmp_path / "whole", epochs=2) == 0
    killed: list[int] = []

    def kill(*args: Any, **kwargs: Any) -> Any:
        if len(killed) < 2:
            for child in multiprocessing.active_children():
                killed.append(child.pid or 0)
                os.kill(killed[-1], signal.SIGKILL)
        return real(*args, **kwargs)

    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", kill)
    with pytest.warns(UserWarning, match="replaced"):
        assert run_here(tmp_path / "run", epochs=2, workers=2) == 0
    assert len(killed) >= 2
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_reading_processes_may_be_started_in_any_way(
    run_here: Any, tmp_path: Path, monkeypatch: Any, steady: None, method: str
) -> None:
    """macOS and Windows spawn them, and Python 3.14 takes them from a server."""
    assert run_here(tmp_path / "here", epochs=2) == 0
    usual = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        assert run_here(tmp_path / "elsewhere", epochs=2, workers=1, negatives="swap") == 0
        assert run_here(tmp_path / "run", epochs=2, workers=2) == 0
    finally:
        multiprocessing.set_start_method(usual, force=True)
    assert losses(tmp_path / "run") == losses(tmp_path / "here")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_few_bad_pictures_do_not_stop_training(run_here: Any, tmp_path: Path, workers: int) -> None:
    run = tmp_path / "run"
    data = make_shards(tmp_path / "data", 60, bad=[3, 41], mute=[17])
    assert run_here(run, train_data=data, workers=workers) == 0
    assert max(losses(run)) == 12
    listed = quarantined(run)
    assert sorted(entry["sample"] for entry in listed) == [3, 17, 41], "each once, however many epochs"
    by_sample = {entry["sample"]: entry for entry in listed}
    assert "0003.png" in by_sample[3]["where"] and "000000.tar" in by_sample[3]["where"]
    assert "caption" in by_sample[17]["reason"]


def test_a_bad_picture_whose_name_is_no_utf8_does_not_stop_training(run_here: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = make_shards(tmp_path / "caf\udce9", 40, bad=[3])
    (data / "000000.tar").rename(data / "\udce9.tar")  # the second shard by name
    assert run_here(run, train_data=data, val_data=data, epochs=2) == 0
    assert run_here(run, train_data=data, val_data=data, epochs=4, resume="auto") == 0
    (listed,) = quarantined(run)
    assert listed["where"] == f"{data}/\udce9.tar/0003.png"
    assert len(Index.open(run / "index").items) == 39


def test_quarantine_names_a_sample_once_after_a_resume(run_here: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    data = make_shards(tmp_path / "data", 60, bad=[3, 41])
    assert run_here(run, train_data=data, epochs=2) == 0
    assert run_here(run, train_data=data, epochs=4, resume="auto") == 0
    assert sorted(entry["sample"] for entry in quarantined(run)) == [3, 41]


def test_bad_pictures_of_a_table_are_counted_and_listed(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    table = make_table(tmp_path / "data", 60, bad=[7, 33])
    assert run_here(run, train_data=table) == 0
    listed = (run / "quarantine.jsonl").read_text() if (run / "quarantine.jsonl").is_file() else ""
    assert "007.png" in listed and "033.png" in listed
    assert max(losses(run)) == 12


def test_too_many_bad_pictures_stop_with_the_list(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    bad = list(range(0, 60, 5))  # twelve: more than ten and more than 1 %
    data = make_shards(tmp_path / "data", 60, bad=bad)
    assert run_here(run, train_data=data) == 2
    said = one_line(capsys.readouterr().err)
    assert "quarantine.jsonl" in said and "60" in said
    listed = [entry["sample"] for entry in quarantined(run)]
    assert len(listed) == len(set(listed)) > 10 and set(listed) <= set(bad)


def test_too_many_bad_pictures_of_a_table_stop_with_the_list(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    table = make_table(tmp_path / "data", 60, bad=range(0, 60, 5))
    assert run_here(tmp_path / "run", train_data=table) == 2
    said = one_line(capsys.readouterr().err)
    assert "12" in said and str(table) in said


def test_ten_bad_pictures_are_allowed(run_here: Any, tmp_path: Path) -> None:
    data = make_shards(tmp_path / "data", 60, bad=range(0, 60, 6))  # a sixth, but only ten
    assert run_here(tmp_path / "run", train_data=data, epochs=2) == 0
    assert len(quarantined(tmp_path / "run")) == 10


def test_more_than_ten_are_allowed_below_one_in_a_hundred(run_here: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(quarantine, "BAD_SHARE", 0.5)  # instead of thousands of pictures
    data = make_shards(tmp_path / "data", 60, bad=range(0, 60, 5))
    assert run_here(tmp_path / "run", train_data=data, epochs=2) == 0
    assert len(quarantined(tmp_path / "run")) == 12
    monkeypatch.setattr(quarantine, "BAD_SHARE", 0.19)
    assert run_here(tmp_path / "other", train_data=data, epochs=2) == 2


def test_only_bad_pictures(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    data = make_shards(tmp_path / "data", 24, bad=range(24))
    assert run_here(tmp_path / "run", train_data=data) == 2
    one_line(capsys.readouterr().err)


def test_bad_pictures_in_the_held_out_data(run_here: Any, tmp_path: Path) -> None:
    held_out = make_shards(tmp_path / "val", 20, bad=[2, 3])
    assert run_here(tmp_path / "run", val_data=held_out, epochs=1) == 0
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["retrieval"]["n_images"] == 18


def test_a_locked_tower_takes_bad_pictures_as_well(run_here: Any, tmp_path: Path) -> None:
    data = make_shards(tmp_path / "data", 60, bad=[3, 41])
    assert run_here(tmp_path / "run", recipe="lit", train_data=data, epochs=2) == 0
    assert sorted(entry["sample"] for entry in quarantined(tmp_path / "run")) == [3, 41]


def test_a_changed_shard_is_other_data(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert run_here(run, train_data=make_shards(tmp_path / "data", 60), epochs=1) == 0
    shutil.rmtree(tmp_path / "data")
    make_shards(tmp_path / "data", 60, bad=[1])
    capsys.readouterr()
    assert run_here(run, train_data=tmp_path / "data", epochs=2, resume="auto") == 2
    assert "data" in one_line(capsys.readouterr().err)
    assert len(records(run, "train")) == 3


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 0},
        {"batch_size": 1},
        {"batch_size": -5},
        {"micro_batch_size": 0},
        {"log_every": 0},
        {"workers": -1},
        {"scale_max": 0},
        {"scale_init": 0},
        {"lr": 0},
        {"lr": "nan"},
        {"epochs": 0},
        {"epochs": "inf"},
        {"seed": 10**20},
        {"image_size": 1},
        {"max_steps": 0},
        {"warmup": -1},
        {"crop_scale": [-1, 0]},
        {"log_with": "no-such-tracker"},
        {"log_with": "wandb"},
    ],
    ids=lambda s: "-".join(map(str, next(iter(s.items())))),
)
def test_values_that_make_no_sense_are_named(
    run_here: Any, tmp_path: Path, capsys: Any, held_out: Path, settings: dict[str, Any], monkeypatch: Any
) -> None:
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", _none_installed)
    status = run_here(tmp_path / "run", val_data=held_out, **{"max_steps": 2, **settings})
    assert status == 2
    flag = next(iter(settings)).replace("_", "-")
    assert flag in one_line(capsys.readouterr().err)


def _none_installed(log_with: Any, *args: Any) -> list[Any]:
    from accelerate.tracking import filter_trackers

    filter_trackers(log_with, *args)  # names the unknown ones
    return []


def test_keep_last_0_never_deletes_what_was_just_written(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    status = run_here(tmp_path / "run", max_steps=2, keep_last=0)
    assert (status == 2 and "keep-last" in one_line(capsys.readouterr().err)) or steps(tmp_path / "run") == [2]


def test_fewer_samples_than_a_batch(run_here: Any, tmp_path: Path, capsys: Any, table: Path) -> None:
    assert run_here(tmp_path / "run", batch_size=61) == 2
    said = one_line(capsys.readouterr().err)
    assert str(table) in said and "60" in said and "61" in said and "--batch-size" in said
