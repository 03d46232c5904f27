"""What a run leaves behind, and who may write where."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import assert_same_weights, losses, one_line, records, steps, weights

from clipkit.run_file import load_config
from clipkit.training.checkpoint import read_state


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, basics: dict[str, Any], held_out: Path) -> Path:
    """A run of 12 steps with validation every 3 of them."""
    from training_helpers import flags

    from clipkit.train import main

    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main(flags({**basics, "output": str(run), "val_data": str(held_out)})) == 0
    return run


def test_the_directory_holds_what_the_design_says(finished: Path) -> None:
    for name in ("config.yaml", "metrics.jsonl", "report.html", "evaluation.json"):
        assert (finished / name).is_file(), name
    assert "<html" in (finished / "report.html").read_text()
    newest = finished / "checkpoints" / "step-12"
    assert {"model.safetensors", "optimizer.safetensors", "state.json", "config.yaml"} <= {
        p.name for p in newest.iterdir()
    }
    assert not list(finished.rglob("*tmp*")), "nothing temporary stays"
    for path in finished.rglob("*"):
        assert path.suffix not in {".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt"}, f"{path} may be a pickle"


def test_loss_in_every_training_record_and_steps_ascend(finished: Path) -> None:
    train = records(finished, "train")
    assert [r["step"] for r in train] == list(range(1, 13))
    for record in train:
        assert math.isfinite(record["loss"]) and record["loss"] > 0
        for name in ("lr", "scale", "log_scale", "grad_norm", "epoch", "samples_per_second"):
            assert math.isfinite(record[name]), name
        assert record["scale"] == pytest.approx(math.exp(record["log_scale"]))
    every = [r["step"] for r in records(finished)]
    assert every == sorted(every)
    assert [r["step"] for r in records(finished, "eval")] == [3, 6, 9, 12]
    assert train[-1]["epoch"] == pytest.approx(4.0)
    assert train[-1]["lr"] < 0.1 * max(r["lr"] for r in train)
    begun = records(finished, "start")
    assert len(begun) == 1 and begun[0]["precision"] == "float32" and begun[0]["threads"] >= 1
    assert begun[0]["matmul"] in ("highest", "medium")


def test_the_run_learns(finished: Path) -> None:
    found = losses(finished)
    assert found[12] < found[1] - 0.5


def test_the_resolved_config_is_with_run_and_checkpoint(finished: Path, basics: dict[str, Any]) -> None:
    for path in (finished / "config.yaml", finished / "checkpoints" / "step-12" / "config.yaml"):
        config = load_config(path)
        assert config.recipe == "clip" and config.optim.batch_size == 20 and config.optim.lr == 3e-3
        assert config.data.train_data == basics["train_data"] and config.run.output == str(finished)


def test_the_config_of_a_run_makes_the_same_run(finished: Path, tmp_path: Path, steady: None) -> None:
    from clipkit.train import main

    other = tmp_path / "again"
    assert main(["--config", str(finished / "config.yaml"), "--output", str(other)]) == 0
    assert losses(other)[1] == pytest.approx(losses(finished)[1], abs=1e-6)
    assert losses(other)[12] == pytest.approx(losses(finished)[12], abs=1e-3)


def test_evaluation_says_protocol_numbers_and_intervals(finished: Path) -> None:
    evaluation = json.loads((finished / "evaluation.json").read_text())
    assert evaluation["split"] == "val"
    retrieval = evaluation["retrieval"]
    assert retrieval["n_images"] == 20 and retrieval["n_texts"] == 20 and retrieval["protocol"]
    for k in ("1", "5", "10"):
        interval = retrieval["image_to_text"][k]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    assert retrieval["baseline"], "the model before training stands beside it"


def test_the_best_checkpoint_is_kept_and_ends_the_run(finished: Path) -> None:
    evals = {r["step"]: (r["image_to_text@1"] + r["text_to_image@1"]) / 2 for r in records(finished, "eval")}
    best = max(evals, key=lambda step: (evals[step], -step))
    state = read_state(finished / "checkpoints" / "step-12")
    assert state.best is not None and state.best[1] == best
    assert state.best[0] == pytest.approx(evals[best])
    assert best in steps(finished)
    assert steps(finished) == sorted({best, 9, 12}), "the last two and the best"


def test_keep_best_is_what_load_takes(run_here: Any, tmp_path: Path, held_out: Path, monkeypatch: Any) -> None:
    """Validation is made to peak at step 3; the run ends with, and load gives, the weights of that step."""
    import clipkit
    from clipkit.training import loop

    real = loop.evaluate_split

    def peak(model: Any, *args: Any, **kwargs: Any) -> Any:
        report = real(model, *args, **kwargs)
        if kwargs.get("bootstrap") == 0:  # validation during training
            calls.append(1)
            good = 1.0 if len(calls) == 1 else 0.0
            names = report.retrieval.metrics()
            object.__setattr__(report, "retrieval", _Fixed(dict.fromkeys(names, good)))
        return report

    calls: list[int] = []
    monkeypatch.setattr(loop, "evaluate_split", peak)
    run = tmp_path / "run"
    assert run_here(run, val_data=held_out, keep_last=1) == 0
    assert len(calls) == 4
    assert steps(run) == [3, 12]
    kept = weights(run / "checkpoints" / "step-3")
    model = clipkit.load(run, device="cpu").model
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, kept[f"model/{name}"]), name
    assert json.loads((run / "evaluation.json").read_text())["step"] == 3

    calls.clear()
    other = tmp_path / "other"
    assert run_here(other, val_data=held_out, keep_last=1, keep_best=False, epochs=1) == 0
    assert steps(other) == [3]


class _Fixed:
    def __init__(self, figures: dict[str, float]) -> None:
        self._figures = figures

    def metrics(self) -> dict[str, float]:
        return self._figures


def test_two_runs_of_one_seed_are_one(run_here: Any, tmp_path: Path, steady: None) -> None:
    assert run_here(tmp_path / "a", epochs=1) == 0
    assert run_here(tmp_path / "b", epochs=1, workers=2) == 0
    assert run_here(tmp_path / "c", epochs=1, seed=1) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b") != losses(tmp_path / "c")
    assert_same_weights(tmp_path / "a" / "checkpoints" / "step-3", tmp_path / "b" / "checkpoints" / "step-3")


def test_without_held_out_data_there_is_a_report_all_the_same(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert run_here(run, max_steps=2) == 0
    assert (run / "report.html").is_file()
    said = capsys.readouterr().out
    assert str(run / "report.html") in said and "clipkit search" in said and "clipkit demo" in said


def test_dry_run_prints_the_plan_and_writes_nothing(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    assert run_here(tmp_path / "run", dry_run=True) == 0
    said = capsys.readouterr().out
    assert "12" in said and "steps" in said and "memory" in said and "time" in said
    assert list(tmp_path.iterdir()) == []


def test_dry_run_leaves_an_existing_run_alone(run_here: Any, tmp_path: Path, finished: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    run_here(finished, dry_run=True, overwrite=True)
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_an_existing_run_is_refused(run_here: Any, finished: Path, capsys: Any) -> None:
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*")}
    assert run_here(finished) == 2
    said = one_line(capsys.readouterr().err)
    assert str(finished) in said and "--resume auto" in said and "--overwrite" in said and "--output" in said
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*")} == before


def test_overwrite_replaces_a_run(run_here: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_here(run, epochs=2) == 0
    (run / "note.txt").write_text("old")
    assert run_here(run, max_steps=1, overwrite=True) == 0
    assert steps(run) == [1] and losses(run).keys() == {1}
    assert not (run / "note.txt").exists()


@pytest.mark.parametrize("how", [{"overwrite": True}, {"resume": "auto"}, {"resume": "auto", "overwrite": True}])
@pytest.mark.parametrize("foreign", ["photos/cat.jpg", "config.yaml", "checkpoints/weights.bin", "metrics.jsonl"])
def test_a_folder_that_is_no_run_is_never_deleted(
    run_here: Any, tmp_path: Path, capsys: Any, how: dict[str, Any], foreign: str
) -> None:
    """Somebody's project folder may well hold a config.yaml, or a folder called checkpoints."""
    folder = tmp_path / "project"
    for name in (foreign, "thesis.tex"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("name: mine\n")
    assert run_here(folder, max_steps=1, **how) == 2
    assert str(folder) in one_line(capsys.readouterr().err)
    assert (folder / foreign).read_text() == (folder / "thesis.tex").read_text() == "name: mine\n"


@pytest.mark.parametrize("text", ["", "lr: 1e-3\nbatch_size: 20\n"])
def test_a_run_file_of_ones_own_makes_no_run_directory(run_here: Any, tmp_path: Path, capsys: Any, text: str) -> None:
    """A project may keep the settings for ``--config`` in a file of the same name."""
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "thesis.tex").write_text("mine")
    assert run_here(tmp_path, max_steps=1, overwrite=True) == 2
    assert str(tmp_path) in one_line(capsys.readouterr().err)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_overwrite_does_not_delete_before_the_data_are_found(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    run = tmp_path / "run"
    assert run_here(run, max_steps=1) == 0
    capsys.readouterr()
    assert run_here(run, max_steps=1, overwrite=True, train_data=tmp_path / "mistyped.csv") == 2
    assert "mistyped.csv" in one_line(capsys.readouterr().err)
    assert steps(run) == [1], "a mistyped path must not cost the old run"


def test_a_file_in_the_way_is_named(run_here: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "run").write_text("a file")
    assert run_here(tmp_path / "run", overwrite=True) == 2
    assert str(tmp_path / "run") in one_line(capsys.readouterr().err)
    assert (tmp_path / "run").read_text() == "a file"


def test_an_empty_folder_may_be_used(run_here: Any, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert run_here(tmp_path / "run", max_steps=1) == 0


def test_log_every_and_save_every(run_here: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_here(run, log_every=5, save_every=4, keep_last=100) == 0
    assert {5, 10, 12} <= losses(run).keys()
    assert steps(run) == [4, 8, 12]
