"""The run directory: config, metrics, checkpoints, report; and who may write there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from clipkit.cache import atomic_write
from clipkit.config import Config, save_config
from clipkit.errors import ClipkitError
from clipkit.training.checkpoint import FOLDER, checkpoints

CONFIG, METRICS, QUARANTINE = "config.yaml", "metrics.jsonl", "quarantine.jsonl"


def claim(config: Config, main: bool) -> tuple[Path, Path | None]:
    """The run's directory and the checkpoint to resume from, if any.

    Args:
        main: whether this process may create and delete.

    Raises:
        ClipkitError: the directory holds a run and neither --resume nor --overwrite was given, or what --resume
            names does not exist.
    """
    run = Path(config.run.output or f"runs/{config.recipe}")
    resume = config.run.resume
    if run.exists() and not run.is_dir():
        raise ClipkitError(f"{run}: a file is in the way of the run directory; pass another --output")
    occupied = run.is_dir() and any(run.iterdir())
    if resume not in (None, "auto"):
        checkpoint = Path(str(resume))
        if not (checkpoint / "state.json").is_file():
            raise ClipkitError(f"--resume {resume}: no checkpoint there; pass auto or a checkpoints/step-N folder")
        return run, checkpoint
    if resume == "auto":
        kept = checkpoints(run)
        if kept:
            return run, kept[-1]
    elif occupied and not config.run.overwrite:
        raise ClipkitError(
            f"{run} exists: pass --resume auto to continue it, --overwrite to replace it, or --output DIR"
        )
    if occupied and main:
        if not (run / CONFIG).is_file() and not (run / FOLDER).is_dir():
            raise ClipkitError(f"{run} exists and is no run directory, so it is not touched; pass another --output")
        shutil.rmtree(run)
    return run, None


class Metrics:
    """``metrics.jsonl``: one JSON object per record, on disk as soon as it is written.

    Args:
        run: the run directory.
        start: step of the checkpoint that the run goes on from; records of later steps are cut off.
    """

    def __init__(self, run: Path, start: int) -> None:
        self.path = run / METRICS
        kept = [line for line in read_metrics(run) if line.get("step", 0) <= start] if start else []
        with atomic_write(self.path) as file:
            for record in kept:
                file.write((json.dumps(record) + "\n").encode())

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The run's records; a half-written last line is left out."""
    path = run / METRICS
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def start_run(run: Path, config: Config) -> None:
    """Make the directory and write the resolved config."""
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / CONFIG)
