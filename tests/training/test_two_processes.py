"""Two processes over gloo are one process: first loss, final weights, resume, and stopping together."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training_helpers import (
    assert_same_weights,
    finish,
    flags,
    group_is_gone,
    kill_group,
    losses,
    make_table,
    records,
    start,
    steps,
    wait_for_step,
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")]


@pytest.fixture(scope="module")
def settings(basics: dict[str, Any], held_out: Path) -> dict[str, Any]:
    return {**basics, "val_data": str(held_out), "batch_size": 21, "keep_last": 99}  # 21: pieces of 11 and 10


def run_it(settings: dict[str, Any], output: Path, launcher: str) -> str:
    """What a run says that ``launcher`` starts; one process is this one, which has imported everything."""
    if launcher == "here":
        from clipkit.train import main

        assert main(flags({**settings, "output": str(output)})) == 0
        return ""
    status, out, err = finish(start({**settings, "output": str(output)}, launcher))
    assert status == 0, err[-3000:]
    return out


@pytest.fixture(scope="module")
def one(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("one") / "run"
    run_it(settings, run, "here")
    return run


@pytest.fixture(scope="module")
def two(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("two") / "run"
    assert "2 process" not in run_it(settings, run, "torchrun 2")
    return run


def assert_like_one(run: Path, one: Path) -> None:
    mine, theirs = losses(run), losses(one)
    assert mine.keys() == theirs.keys() and len(mine) == 12
    assert mine[1] == pytest.approx(theirs[1], abs=1e-6)
    for step in mine:
        assert mine[step] == pytest.approx(theirs[step], abs=1e-3), step
    assert_same_weights(run / "checkpoints" / "step-12", one / "checkpoints" / "step-12", atol=2e-3)
    assert json.loads((run / "evaluation.json").read_text())["retrieval"]["n_images"] == 20
    assert (run / "report.html").is_file()
    every = [r["step"] for r in records(run)]
    assert every == sorted(every)


def test_torchrun(one: Path, two: Path) -> None:
    assert_like_one(two, one)
    assert losses(two) != losses(one), "two processes round otherwise: they really were two"


def test_accelerate_launch(one: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    run_it(settings, tmp_path / "run", "accelerate 2")
    assert_like_one(tmp_path / "run", one)


def test_plain_accelerate_launch_is_the_same_run(one: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    run_it(settings, tmp_path / "run", "accelerate")
    assert losses(tmp_path / "run")[1] == pytest.approx(losses(one)[1], abs=1e-6)
    assert_like_one(tmp_path / "run", one)


def test_dry_run_plans_for_both_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    said = run_it({**settings, "dry_run": True}, tmp_path / "run", "forked 2")
    assert "on 2 process" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["siglip", "lit"])
def test_the_other_recipes_on_two_processes(recipe: str, settings: dict[str, Any], tmp_path: Path) -> None:
    for name, launcher in (("one", "here"), ("two", "forked 2")):
        run_it({**settings, "recipe": recipe}, tmp_path / name, launcher)
    assert_like_one(tmp_path / "two", tmp_path / "one")


def test_micro_batches_on_two_processes(one: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    run_it({**settings, "micro_batch_size": 4}, tmp_path / "run", "forked 2")
    assert_like_one(tmp_path / "run", one)


@pytest.mark.parametrize(("first", "then"), [("here", "forked 2"), ("forked 2", "here")])
def test_resume_on_another_number_of_processes(
    first: str, then: str, one: Path, two: Path, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree({"here": one, "forked 2": two}[first], run)
    for step in steps(run):
        if step > 6:
            shutil.rmtree(run / "checkpoints" / f"step-{step}")
    run_it({**settings, "resume": "auto"}, run, then)
    assert_like_one(run, one)


def test_resume_on_two_processes_is_bit_identical(two: Path, settings: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(two, run)
    for step in steps(run):
        if step > 6:
            shutil.rmtree(run / "checkpoints" / f"step-{step}")
    run_it({**settings, "resume": "auto"}, run, "forked 2")
    assert losses(run) == losses(two)
    assert_same_weights(run / "checkpoints" / "step-12", two / "checkpoints" / "step-12")


@pytest.mark.parametrize(
    ("launcher", "number"),
    [
        ("accelerate", signal.SIGINT),
        ("accelerate", signal.SIGTERM),
        ("torchrun 2", signal.SIGINT),
        ("accelerate 2", signal.SIGTERM),
    ],
)
def test_a_stop_writes_a_checkpoint(launcher: str, number: int, settings: dict[str, Any], tmp_path: Path) -> None:
    """Ctrl-C goes to the terminal's whole group, SIGTERM to the launcher alone, which may not pass it on."""
    run = tmp_path / "run"
    settings = {**settings, "val_data": None, "epochs": 4000}  # no checkpoint but the one that the stop writes
    process = start({**settings, "output": str(run), "save_every": 10**6}, launcher)
    wait_for_step(run, 5, process)
    if number == signal.SIGINT:
        kill_group(process, number)
    else:
        process.send_signal(number)
    assert group_is_gone(process), "somebody went on"
    stopped = steps(run)
    assert len(stopped) == 1 and max(losses(run)) <= stopped[0]
    run_it({**settings, "max_steps": stopped[0] + 2, "resume": "auto"}, run, "here")
    assert max(losses(run)) == stopped[0] + 2


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun 2"])
def test_a_mistake_is_told_in_a_line_and_ends_all_processes(launcher: str, basics: Any, tmp_path: Path) -> None:
    status, _, err = finish(
        start({**basics, "train_data": "missing.csv", "output": str(tmp_path / "run")}, launcher), timeout=90
    )
    assert status != 0
    lines = [line for line in err.splitlines() if "clipkit: " in line]
    assert lines and all("missing.csv" in line for line in lines)
    assert not (tmp_path / "run").exists()


def test_a_bad_picture_counts_once_whoever_reads_it(settings: dict[str, Any], tmp_path: Path) -> None:
    """Six bad pictures of sixty are allowed, twelve would not be. One process meets all six in its first epochs, then
    two processes meet them again."""
    from test_failures import make_shards, quarantined

    data = make_shards(tmp_path / "data", 60, bad=range(0, 60, 10))
    settings = {**settings, "train_data": str(data), "val_data": None}
    run_it({**settings, "epochs": 3}, tmp_path / "run", "here")
    run_it({**settings, "epochs": 8, "resume": "auto"}, tmp_path / "run", "forked 2")
    assert max(losses(tmp_path / "run")) == 23
    assert sorted(e["sample"] for e in quarantined(tmp_path / "run")) == list(range(0, 60, 10))


def test_a_table_is_converted_once_and_its_bad_pictures_count_once(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    """Both processes know the same six bad pictures, and so does one that resumes."""
    from test_failures import quarantined

    monkeypatch.setenv("CLIPKIT_CACHE", str(tmp_path / "cache"))
    settings = {**settings, "train_data": str(make_table(tmp_path / "data", 66, noise=9, bad=range(0, 66, 11)))}
    run_it({**settings, "max_steps": 1}, tmp_path / "run", "forked 2")
    assert len(list((tmp_path / "cache" / "shards").glob("[!.]*"))) == 2, "training data and held-out data"
    run_it({**settings, "max_steps": 2, "resume": "auto"}, tmp_path / "run", "here")
    assert max(losses(tmp_path / "run")) == 2 and len(quarantined(tmp_path / "run")) == 6


def test_too_many_bad_pictures_stop_all_processes(settings: dict[str, Any], tmp_path: Path) -> None:
    from test_failures import make_shards

    data = make_shards(tmp_path / "data", 60, bad=range(0, 60, 5))
    status, _, err = finish(
        start({**settings, "train_data": str(data), "output": str(tmp_path / "run")}, "forked 2"), timeout=90
    )
    assert status != 0 and "quarantine.jsonl" in err


def test_the_launchers_death_is_noticed(settings: dict[str, Any], tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = {**settings, "val_data": None}
    process = start({**settings, "output": str(run), "epochs": 4000, "save_every": 10**6}, "accelerate")
    wait_for_step(run, 5, process)
    process.kill()
    assert group_is_gone(process), "the orphan went on without anybody to stop it"
    assert len(steps(run)) == 1
