"""Interrupted anywhere and gone on: the same losses and the same weights as if nothing had happened."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import (
    assert_same_run,
    assert_same_weights,
    at_step,
    finish,
    flags,
    kill_group,
    losses,
    make_config,
    make_table,
    one_line,
    records,
    start,
    steps,
    wait_for_step,
    wait_until,
)

from clipkit.training.checkpoint import read_state
from clipkit.training.kept import checkpoints

pytestmark = pytest.mark.usefixtures("steady")


@pytest.mark.parametrize(
    ("step", "number"), [(1, signal.SIGINT), (5, signal.SIGTERM), (6, signal.SIGINT), (12, signal.SIGINT)]
)
def test_interrupted_and_resumed_is_uninterrupted(
    run_here: Any, whole: Path, held_out: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, step: int, number: int
) -> None:
    run, handler = tmp_path / "run", signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        assert run_here(run, val_data=held_out, keep_last=99) == 0
    said = capsys.readouterr().out
    assert "--resume auto" in said and f"step {step}" in said
    assert steps(run)[-1] == step and max(losses(run)) == step
    assert signal.getsignal(signal.SIGINT) is handler, "handlers are put back"
    assert run_here(run, val_data=held_out, keep_last=99, resume="auto") == 0
    assert_same_run(run, whole)
    # What validation saw is part of the run too: it decides which checkpoint is the best.
    strip = [{k: v for k, v in r.items() if k != "seconds"} for r in records(run, "eval")]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in records(whole, "eval")]
    assert read_state(run / "checkpoints/step-12").best == read_state(whole / "checkpoints/step-12").best
    assert (run / "report.html").is_file()


def test_killed_with_lines_after_the_checkpoint(run_here: Any, whole: Path, held_out: Path, copy: Path) -> None:
    (copy / "checkpoints" / ".tmp-step-9-123").mkdir()
    (copy / "checkpoints" / ".tmp-step-9-123" / "model.safetensors").write_bytes(b"half")
    assert run_here(copy, val_data=held_out, keep_last=99, resume="auto") == 0
    assert_same_run(copy, whole)
    assert not list(copy.rglob(".tmp*"))
    assert records(copy, "eval") == records(whole, "eval")


def test_metric_lines_after_the_checkpoint_are_cut_before_the_first_step(
    run_here: Any, held_out: Path, copy: Path, monkeypatch: Any
) -> None:
    seen: list[int] = []

    def look() -> None:
        seen.extend(r["step"] for r in records(copy))
        raise KeyboardInterrupt

    at_step(monkeypatch, 1, look)
    assert run_here(copy, val_data=held_out, resume="auto") == 130
    assert max(seen) == 6 and seen == sorted(seen)


def test_nothing_pickled_is_read(run_here: Any, held_out: Path, copy: Path, monkeypatch: Any) -> None:
    import clipkit

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a pickle was opened")

    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch.serialization, "load", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(pickle, "loads", refuse)
    assert run_here(copy, val_data=held_out, resume="auto") == 0
    model = clipkit.load(copy, device="cpu")
    assert model.encode_text(["a red left"]).shape == (1, 24)


def test_resume_of_a_finished_run_changes_nothing(
    run_here: Any, whole: Path, held_out: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)

    def refuse() -> None:
        raise AssertionError("a step was made")

    at_step(monkeypatch, 1, refuse)
    assert run_here(run, val_data=held_out, keep_last=99, resume="auto") == 0
    assert records(run) == records(whole)
    assert_same_run(run, whole)
    assert (run / "report.html").is_file()


def test_resume_auto_starts_where_there_is_nothing(run_here: Any, tmp_path: Path) -> None:
    assert run_here(tmp_path / "new", max_steps=1, resume="auto") == 0
    assert steps(tmp_path / "new") == [1]


def test_a_finished_run_can_go_on_for_longer(run_here: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_here(run, epochs=1) == 0
    assert run_here(run, epochs=2, resume="auto") == 0
    assert steps(run)[-1] == 6 and sorted(losses(run)) == [1, 2, 3, 4, 5, 6]


def test_an_earlier_checkpoint_can_be_named(run_here: Any, whole: Path, held_out: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    checkpoint = run / "checkpoints" / "step-3"
    assert run_here(run, val_data=held_out, keep_last=99, resume=checkpoint) == 0
    assert_same_run(run, whole)


def test_interrupted_after_going_back_goes_on_from_there(
    run_here: Any, whole: Path, held_out: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    """Gone back to step 3 with another rate, interrupted at step 5: what comes next is step 6 of the new course."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
        again = {"val_data": held_out, "lr": 1e-3}
        assert run_here(run, **again, resume=run / "checkpoints" / "step-3") == 0
    capsys.readouterr()
    assert run_here(run, **again, resume="auto") == 0
    assert "step 5" in capsys.readouterr().out
    assert sorted(losses(run)) == list(range(1, 13))


def test_resume_of_what_is_no_checkpoint(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    assert run_here(tmp_path / "run", resume=tmp_path / "nothing") == 2
    assert str(tmp_path / "nothing") in one_line(capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_other_data(run_here: Any, copy: Path, held_out: Path, tmp_path: Path, capsys: Any) -> None:
    other = make_table(tmp_path / "other", 40, noise=5)
    before = (copy / "metrics.jsonl").read_bytes()
    assert run_here(copy, val_data=held_out, resume="auto", train_data=other) == 2
    said = one_line(capsys.readouterr().err)
    assert str(other) in said and "--train-data" in said
    assert (copy / "metrics.jsonl").read_bytes() == before and steps(copy) == [3, 6]


@pytest.mark.parametrize("change", ["shape", "layers", "siglip"])
def test_a_checkpoint_of_another_shape(
    run_here: Any, copy: Path, held_out: Path, tmp_path: Path, capsys: Any, change: str
) -> None:
    config = make_config(tmp_path / "other.json", embed_dim=16)
    if change == "layers":
        values = json.loads(make_config(tmp_path / "other.json").read_text())
        values["text_cfg"]["layers"] = 1
        config.write_text(json.dumps(values))
    settings = {"recipe": "siglip"} if change == "siglip" else {"model": config}
    assert run_here(copy, val_data=held_out, resume="auto", **settings) == 2
    said = one_line(capsys.readouterr().err)
    assert "step-6" in said and ("shape" in said or "model" in said)
    if change == "shape":
        assert "24" in said and "16" in said, "both shapes are named"


def test_the_arithmetic_of_the_run_is_used_again(run_here: Any, copy: Path, held_out: Path, monkeypatch: Any) -> None:
    path = copy / "checkpoints" / "step-6" / "state.json"
    state = json.loads(path.read_text())
    state["arithmetic"] |= {"matmul": "medium", "threads": 1}
    path.write_text(json.dumps(state))
    torch.set_num_threads(2)
    seen: list[Any] = []
    at_step(monkeypatch, 1, lambda: seen.append((torch.get_float32_matmul_precision(), torch.get_num_threads())))
    assert run_here(copy, val_data=held_out, resume="auto") == 0
    assert seen == [("medium", 1)]
    assert json.loads((copy / "checkpoints/step-12/state.json").read_text())["arithmetic"] == state["arithmetic"]


def settings_of(basics: dict[str, Any], run: Path, held_out: Path) -> dict[str, Any]:
    return {**basics, "output": str(run), "val_data": str(held_out), "keep_last": 99, "epochs": 12, "save_every": 7}


def reference(settings: dict[str, Any], like: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The uninterrupted run, in this process, with the arithmetic that the run ``like`` chose."""
    from clipkit.train import main
    from clipkit.training.precision import Arithmetic

    chosen = records(like, "start")[0]
    arithmetic = Arithmetic(**{k: chosen[k] for k in ("precision", "matmul", "threads", "gflops", "error")})
    with monkeypatch.context() as patch:
        patch.setattr("clipkit.training.precision.choose_arithmetic", lambda *args: arithmetic)
        assert main(flags({**settings, "output": str(run)})) == 0
    return run


@pytest.mark.slow
def test_ctrl_c_on_the_command_line(
    basics: dict[str, Any], held_out: Path, tmp_path: Path, run_here: Any, monkeypatch: Any
) -> None:
    run = tmp_path / "run"
    settings = settings_of(basics, run, held_out) | {"workers": 2}
    process = start(settings)
    wait_for_step(run, 4, process)
    kill_group(process, signal.SIGINT)  # as a terminal does: to the workers too
    status, out, err = finish(process)
    assert status == 0, err
    assert err.strip() == "" or "Traceback" not in err
    assert "--resume auto" in out
    stopped = steps(run)[-1]
    assert 4 <= stopped < 36 and max(losses(run)) <= stopped
    whole = reference(settings, run, tmp_path / "whole", monkeypatch)
    assert run_here(run, **{k: v for k, v in settings.items() if k != "output"}, resume="auto") == 0
    assert losses(run) == losses(whole)
    assert_same_weights(run / "checkpoints" / "step-36", whole / "checkpoints" / "step-36")


def kill_within(process: Any, run: Path, seen: Callable[[], bool]) -> bool:
    """SIGKILL as soon as ``seen``; whether the run was still going then."""
    wait_until(seen, process)
    going = process.poll() is None
    kill_group(process, signal.SIGKILL)
    process.communicate()
    return going


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(
    basics: dict[str, Any], held_out: Path, tmp_path: Path, monkeypatch: Any, workers: int
) -> None:
    """SIGKILL twelve times at steps that are not known in advance, every other time while a checkpoint is written."""
    run = tmp_path / "run"
    settings = settings_of(basics, run, held_out)
    settings |= {"save_every": 2, "resume": "auto", "epochs": 120, "eval_every": 120, "workers": workers}
    draw = random.Random(workers)
    deaths = inside = 0
    for n in range(12):
        before = max((read_state(p).step for p in checkpoints(run)), default=0)
        wanted = before + draw.randint(1, 7)
        process = start(settings, "forked")
        wait_for_step(run, wanted, process)
        if n % 2:
            folder = run / "checkpoints"
            deaths += kill_within(process, run, lambda folder=folder: any(folder.glob(".tmp-step-*")))
            inside += any(folder.glob(".tmp-step-*"))
        else:
            moment = time.monotonic() + draw.random() * 0.2
            deaths += kill_within(process, run, lambda moment=moment: time.monotonic() > moment)
        assert all(read_state(p) for p in checkpoints(run)), "half a checkpoint"
    assert deaths == 12 and inside >= 3, (deaths, inside)
    process = start(settings, "forked")
    status, _, err = finish(process)
    assert status == 0, err
    whole = reference({**settings, "resume": None, "workers": 0}, run, tmp_path / "whole", monkeypatch)
    assert losses(run) == losses(whole)
    assert_same_weights(run / "checkpoints" / "step-360", whole / "checkpoints" / "step-360")


@pytest.mark.slow
@pytest.mark.parametrize("before, after", [(1, 2), (2, 1)])
def test_killed_and_resumed_on_another_number_of_processes(
    basics: dict[str, Any], held_out: Path, tmp_path: Path, monkeypatch: Any, before: int, after: int
) -> None:
    """The batches that are left are the same: sums are taken in another order, so losses agree to the last digits."""
    run = tmp_path / "run"
    launcher = {1: "forked", 2: "forked 2"}
    settings = {**settings_of(basics, run, held_out), "save_every": 2, "epochs": 8, "eval_every": 24, "resume": "auto"}
    process = start(settings, launcher[before])
    wait_for_step(run, 7, process)
    kill_group(process, signal.SIGKILL)
    process.communicate()
    status, _, err = finish(start(settings, launcher[after]))
    assert status == 0, err
    whole = losses(reference({**settings, "resume": None}, run, tmp_path / "whole", monkeypatch))
    mine = losses(run)
    assert mine.keys() == whole.keys() and len(mine) == 24
    assert max(abs(mine[step] - whole[step]) for step in mine) < 1e-3
    receipts = [json.loads(line) for line in (run / "receipts.jsonl").read_text().splitlines()]
    assert [(r["epoch"], r["seen"], r["substituted"]) for r in receipts] == [(e, 60, 0) for e in range(8)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_and_is_emptied(
    run_here: Any, small_disk: Path, tmp_path: Path, capsys: Any, basics: dict[str, Any]
) -> None:
    """A real full disk, in the middle of a checkpoint: one line, the earlier one whole, and the same end as without."""
    assert run_here(tmp_path / "whole", save_every=2, keep_last=99) == 0
    size = sum(p.stat().st_size for p in (tmp_path / "whole/checkpoints/step-2").iterdir())
    stat = os.statvfs(small_disk)
    free = stat.f_bavail * stat.f_frsize
    run = small_disk / "run"
    (small_disk / "ballast").write_bytes(bytes(max(0, free - int(2.6 * size))))
    capsys.readouterr()
    assert run_here(run, save_every=2, keep_last=99) == 2
    said = one_line(capsys.readouterr().err)
    assert "o space left" in said and "--resume auto" in said
    left = steps(run)
    assert left and max(left) < 12 and not list(run.rglob(".tmp*")), left
    (small_disk / "ballast").unlink()
    room = small_disk / "run"
    assert run_here(room, save_every=2, keep_last=1, resume="auto") == 0
    assert losses(room) == losses(tmp_path / "whole")
    assert_same_weights(room / "checkpoints" / "step-12", tmp_path / "whole" / "checkpoints" / "step-12")
