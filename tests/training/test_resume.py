"""Interrupted anywhere and gone on: the same losses and the same weights as if nothing had happened."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import (
    assert_same_weights,
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
)

from clipkit.training import loop
from clipkit.training.checkpoint import read_state
from clipkit.training.kept import checkpoints

pytestmark = pytest.mark.usefixtures("steady")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, basics: dict[str, Any], held_out: Path) -> Iterator[Path]:
    """The uninterrupted run: 12 steps, 3 an epoch, every checkpoint kept."""
    from clipkit.train import main

    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.training.precision._measure", lambda setting: (1.0, 1e-7))
        torch.set_num_threads(1)
        assert main(flags({**basics, "output": str(run), "val_data": str(held_out), "keep_last": 99})) == 0
    yield run


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """The run as it was killed after step 8: its last checkpoint is that of step 6."""
    run = tmp_path / "killed"
    shutil.copytree(whole, run)
    for step in (9, 12):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    for name in ("report.html", "evaluation.json"):
        (run / name).unlink()
    kept = [json.dumps(r) for r in records(run) if r["step"] <= 8]
    (run / "metrics.jsonl").write_text("\n".join([*kept, '{"kind": "train", "step": 9, "lo']))
    return run


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Any) -> None:
    """``action()`` in the middle of the step-th step that this process makes."""
    made = [0]
    real = loop.train_step

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        made[0] += 1
        if made[0] == step:
            action()
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "train_step", wrapped)


def assert_same_run(run: Path, whole: Path, since: int = 0) -> None:
    mine, theirs = losses(run), losses(whole)
    assert mine.keys() == theirs.keys()
    assert {s: v for s, v in mine.items() if s > since} == {s: v for s, v in theirs.items() if s > since}
    every = [r["step"] for r in records(run)]
    assert every == sorted(every)
    assert_same_weights(run / "checkpoints" / "step-12", whole / "checkpoints" / "step-12")


@pytest.mark.parametrize(
    ("step", "number"), [(1, signal.SIGINT), (5, signal.SIGTERM), (6, signal.SIGINT), (12, signal.SIGINT)]
)
def test_interrupted_and_resumed_is_uninterrupted(
    run_here: Any, whole: Path, held_out: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, step: int, number: int
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, step, lambda: os.kill(os.getpid(), number))
        assert run_here(run, val_data=held_out, keep_last=99) == 0
    said = capsys.readouterr().out
    assert "--resume auto" in said and f"step {step}" in said
    assert steps(run)[-1] == step and max(losses(run)) == step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "handlers are put back"
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


DAMAGE = [
    ("model.safetensors", "cut"),
    ("model.safetensors", "noise"),
    ("model.safetensors", "a byte"),
    ("optimizer.safetensors", "gone"),
    ("optimizer.json", "cut"),
    ("state.json", "noise"),
    ("state.json", "gone"),
]


def spoil(path: Path, how: str = "cut") -> None:
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "a byte":  # in the middle of the weights: it still opens
        path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    else:
        path.write_bytes(data[: len(data) // 2] if how == "cut" else os.urandom(200))


@pytest.mark.parametrize(("name", "how"), DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_by(
    run_here: Any, copy: Path, held_out: Path, whole: Path, capsys: Any, name: str, how: str
) -> None:
    """The newest whole one is taken, a line says so, and the run ends as if nothing had happened."""
    spoil(copy / "checkpoints" / "step-6" / name, how)
    assert run_here(copy, val_data=held_out, keep_last=99, resume="auto") == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "is damaged (" in line]
    assert len(told) == 1 and "step-6" in told[0] and name in told[0] and "step-3" in told[0]
    assert any("continuing from" in line and "(step 3)" in line for line in lines)
    assert_same_run(copy, whole)
    assert [p.name for p in checkpoints(copy)] == ["step-3", "step-6", "step-9", "step-12"]


@pytest.mark.parametrize(("name", "how"), [("model.safetensors", "cut"), ("state.json", "noise")])
def test_a_damaged_older_checkpoint_is_ignored(
    run_here: Any, copy: Path, held_out: Path, whole: Path, capsys: Any, name: str, how: str
) -> None:
    spoil(copy / "checkpoints" / "step-3" / name, how)
    assert run_here(copy, val_data=held_out, keep_last=99, resume="auto") == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if "is damaged (" in line]
    assert len(told) == 1 and "step-3" in told[0] and name in told[0]
    assert any("continuing from" in line and "(step 6)" in line for line in lines)
    assert_same_run(copy, whole)


def test_nothing_but_damaged_checkpoints(run_here: Any, copy: Path, held_out: Path, capsys: Any) -> None:
    for step in (3, 6):
        spoil(copy / "checkpoints" / f"step-{step}" / "model.safetensors")
    before = (copy / "metrics.jsonl").read_bytes()
    assert run_here(copy, val_data=held_out, resume="auto") == 2
    said = one_line(capsys.readouterr().err)
    assert str(copy) in said and "step-6" in said and "model.safetensors" in said and "--overwrite" in said
    assert steps(copy) == [3, 6] and (copy / "metrics.jsonl").read_bytes() == before, "nothing is thrown away"


def test_a_damaged_checkpoint_that_is_named_is_refused(run_here: Any, copy: Path, held_out: Path, capsys: Any) -> None:
    spoil(copy / "checkpoints" / "step-6" / "optimizer.safetensors")
    assert run_here(copy, val_data=held_out, resume=copy / "checkpoints" / "step-6") == 2
    said = one_line(capsys.readouterr().err)
    assert "step-6" in said and "optimizer.safetensors" in said and "auto" in said


def test_a_run_whose_best_checkpoint_is_damaged_ends_well(
    run_here: Any, copy: Path, held_out: Path, capsys: Any
) -> None:
    """What validation preferred cannot be had any more: the best is sought anew, and the end does not want it."""
    path = copy / "checkpoints" / "step-6" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"best": [2.0, 3]}))
    spoil(copy / "checkpoints" / "step-3" / "model.safetensors")
    assert run_here(copy, val_data=held_out, keep_last=99, resume="auto") == 0
    best = read_state(copy / "checkpoints" / "step-12").best
    assert best is not None and best[1] in (9, 12)
    assert json.loads((copy / "evaluation.json").read_text())["step"] == best[1]


@pytest.mark.parametrize("name", ["baseline.json", "metrics.jsonl", "quarantine.jsonl"])
def test_damaged_records_of_a_run_do_not_keep_it_from_going_on(
    run_here: Any, copy: Path, held_out: Path, whole: Path, name: str
) -> None:
    (copy / name).write_bytes(b'{"kind": "train", "st\xff\xfe')
    assert run_here(copy, val_data=held_out, keep_last=99, resume="auto") == 0
    assert_same_weights(copy / "checkpoints" / "step-12", whole / "checkpoints" / "step-12")


class Killed(BaseException):
    """What no handler catches, as no handler sees a SIGKILL."""


@pytest.mark.parametrize("call", range(1, 5))
def test_killed_while_the_same_step_is_written_again(
    run_here: Any, whole: Path, held_out: Path, tmp_path: Path, monkeypatch: Any, call: int
) -> None:
    """Gone back to step 3, step 6 is written a second time. Killed before, between or after the renames and
    deletions of that, there is a whole checkpoint of step 6, and the run goes on from it."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (9, 12):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")

    made = [0]

    def killed_at(real: Any) -> Any:
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            if "step-6" in str(path) and Path(path).exists():
                made[0] += 1
                if made[0] == call:
                    raise Killed
            return real(path, *args, **kwargs)

        return wrapped

    again = {"val_data": held_out, "keep_last": 99}
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed_at(os.rename))
        patch.setattr(shutil, "rmtree", killed_at(shutil.rmtree))
        try:
            status = run_here(run, **again, resume=run / "checkpoints" / "step-3")
        except Killed:
            status = None
    assert (status is None) == (call <= 3), "two renames and a deletion"
    assert 6 in [read_state(p).step for p in checkpoints(run)]
    assert run_here(run, **again, resume="auto") == 0
    assert_same_run(run, whole)
    assert [p.name for p in checkpoints(run)] == ["step-3", "step-6", "step-9", "step-12"]
    assert not list((run / "checkpoints").glob(".*")), "what the killed one left is gone"


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


@pytest.mark.slow
def test_killed_at_random_moments(basics: dict[str, Any], held_out: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """SIGKILL six times, at steps that are not known in advance, while checkpoints are being written."""
    import random
    import time

    run = tmp_path / "run"
    settings = settings_of(basics, run, held_out) | {"save_every": 2, "resume": "auto", "epochs": 30}
    draw = random.Random(0)
    deaths = 0
    for _ in range(6):
        before = max((read_state(p).step for p in checkpoints(run)), default=0)
        process = start(settings)
        if before < 75:
            wait_for_step(run, before + draw.randint(3, 12), process)
        time.sleep(draw.random() * 0.2)
        deaths += process.poll() is None
        kill_group(process, signal.SIGKILL)
        process.communicate()
        assert all(read_state(p) for p in checkpoints(run))
    assert deaths >= 4, "the run was over before it could be killed"
    process = start(settings)
    status, _, err = finish(process)
    assert status == 0, err
    whole = reference({**settings, "resume": None}, run, tmp_path / "whole", monkeypatch)
    assert losses(run) == losses(whole)
    assert_same_weights(run / "checkpoints" / "step-90", whole / "checkpoints" / "step-90")
