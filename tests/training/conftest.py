"""Data and tiny models for runs, and runs inside the test's own process."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from training_helpers import flags, make_config, make_table, records

Run = Callable[..., int]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache; subprocesses inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPKIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _settings_restored() -> Iterator[None]:
    """A run sets threads and matmul precision for its process; the next test starts from what was."""
    import torch

    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(matmul)


@pytest.fixture
def steady(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe of this machine always finds the same, so that two runs in one test compute alike."""
    import torch

    monkeypatch.setattr("clipkit.training.precision._measure", lambda setting: (1.0, 1e-7))
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 60 pictures with 60 different captions."""
    return make_table(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 20 other pictures."""
    return make_table(tmp_path_factory.mktemp("held-out"), 20, noise=1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JSON config of a model of 32 pixels and 2 layers."""
    return make_config(tmp_path_factory.mktemp("config") / "tiny.json")


@pytest.fixture(scope="session")
def basics(table: Path, tiny: Path) -> dict[str, Any]:
    """Settings of a run of 12 steps, 3 an epoch, without validation."""
    return {
        "recipe": "clip", "train_data": str(table), "model": str(tiny), "batch_size": 20, "epochs": 4, "lr": 3e-3,
        "log_every": 1, "workers": 0,
    }  # fmt: skip


@pytest.fixture
def run_here(basics: dict[str, Any]) -> Run:
    """``run_here(output, **settings)``: the main job's exit status, in this process."""

    def run(output: Path, **settings: Any) -> int:
        from clipkit.train import main

        return main(flags({**basics, "output": str(output), **settings}))

    return run


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, basics: dict[str, Any], held_out: Path) -> Path:
    """The uninterrupted run: 12 steps, 3 an epoch, every checkpoint kept."""
    import torch

    from clipkit.train import main

    run = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clipkit.training.precision._measure", lambda setting: (1.0, 1e-7))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        assert main(flags({**basics, "output": str(run), "val_data": str(held_out), "keep_last": 99})) == 0
    torch.set_num_threads(threads)
    return run


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
