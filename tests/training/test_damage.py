"""Checkpoints that were damaged, or whose writer was killed: the run goes on from what is whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import assert_same_run, assert_same_weights, one_line, steps, weights

from clipkit.config import Config, ModelConfig
from clipkit.encoders import build
from clipkit.training.checkpoint import State, read_state, save_checkpoint
from clipkit.training.kept import checkpoints, newest_whole, prune

pytestmark = pytest.mark.usefixtures("steady")

DAMAGE = [
    ("model.safetensors", "a byte"),
    ("optimizer.safetensors", "gone"),
    ("optimizer.json", "cut"),
    ("state.json", "noise"),
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


def test_damaged_records_of_a_run_do_not_keep_it_from_going_on(
    run_here: Any, copy: Path, held_out: Path, whole: Path
) -> None:
    for name in ("baseline.json", "metrics.jsonl", "quarantine.jsonl"):
        (copy / name).write_bytes(b'{"kind": "train", "st\xff\xfe')
    assert run_here(copy, val_data=held_out, keep_last=99, resume="auto") == 0
    assert_same_weights(copy / "checkpoints" / "step-12", whole / "checkpoints" / "step-12")


class Killed(BaseException):
    """What no handler catches, as no handler sees a SIGKILL."""


def kill_at(monkeypatch: pytest.MonkeyPatch, call: int, step: int) -> list[int]:
    """End the process at the call-th renaming or deletion of something of ``step`` that exists."""
    made = [0]

    def wrap(real: Any) -> Any:
        def wrapped(path: Any, *args: Any, **kwargs: Any) -> Any:
            if f"step-{step}" in str(path) and Path(path).exists():
                made[0] += 1
                if made[0] == call:
                    raise Killed
            return real(path, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(os, "rename", wrap(os.rename))
    monkeypatch.setattr(shutil, "rmtree", wrap(shutil.rmtree))
    return made


@pytest.mark.parametrize("call", [1, 2, 3])
def test_killed_while_a_step_is_written_again(tiny: Path, tmp_path: Path, monkeypatch: Any, call: int) -> None:
    """Before, between and after the two renamings there is a whole checkpoint of the step, the old or the new one."""
    model = build(ModelConfig(str(tiny)))
    optimizer = torch.optim.AdamW(model.parameters())

    def save(value: float) -> None:
        torch.nn.init.constant_(model.log_scale, value)
        save_checkpoint(tmp_path, model, optimizer.state_dict(), State(6, "", None, {}, 0.0, written=value), Config())

    def scales() -> list[float]:
        return [float(weights(kept)["model/log_scale"]) for kept in checkpoints(tmp_path)]

    save(1.0)
    with monkeypatch.context() as patch:
        kill_at(patch, call, 6)
        with pytest.raises(Killed):
            save(2.0)
    assert scales() == [1.0 if call < 3 else 2.0]
    assert newest_whole(tmp_path)[0] is not None
    with monkeypatch.context() as patch:
        made = kill_at(patch, 0, 6)
        save(3.0)
        prune(tmp_path, 2, None)
    assert scales() == [3.0] and made[0] <= 4
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-6"]


def test_killed_between_the_renamings_and_resumed(
    run_here: Any, whole: Path, held_out: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """Gone back to step 3, step 6 is written a second time; the old one is set aside when the process dies."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (9, 12):
        shutil.rmtree(run / "checkpoints" / f"step-{step}")
    with monkeypatch.context() as patch:
        kill_at(patch, 2, 6)
        with pytest.raises(Killed):
            run_here(run, val_data=held_out, keep_last=99, resume=run / "checkpoints" / "step-3")
    assert not (run / "checkpoints" / "step-6").exists()
    assert 6 in [read_state(p).step for p in checkpoints(run)]
    assert run_here(run, val_data=held_out, keep_last=99, resume="auto") == 0
    assert_same_run(run, whole)
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == ["step-12", "step-3", "step-6", "step-9"]
