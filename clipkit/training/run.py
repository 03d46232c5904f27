"""The run directory: config, metrics, checkpoints, report; and who may write there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipkit.cache import atomic_write
from clipkit.config import Config
from clipkit.errors import ClipkitError
from clipkit.run_file import read_settings, save_config
from clipkit.training.checkpoint import damage
from clipkit.training.kept import newest_whole

CONFIG, METRICS = "config.yaml", "metrics.jsonl"


@dataclass(frozen=True)
class Claim:
    """Where a run goes and what it goes on from.

    Attributes:
        directory: the run's.
        checkpoint: to go on from; None for a new run.
        replaces: whether an old run is in the way.
        notes: a line about every damaged checkpoint that was passed by.
    """

    directory: Path
    checkpoint: Path | None
    replaces: bool = False
    notes: tuple[str, ...] = ()


def claim(config: Config) -> Claim:
    """Where the run goes. Touches nothing: ``start_run`` does, once the data and the model are known to be good.

    Raises:
        ClipkitError: the directory holds a run and neither --resume nor --overwrite was given, or what --resume
            names does not exist or is damaged, or the directory is not a run's.
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
        wrong = damage(checkpoint, contents=True)
        if wrong:
            raise ClipkitError(f"--resume {resume}: damaged ({wrong}); pass auto for the newest whole checkpoint")
        return Claim(run, checkpoint)
    if resume == "auto":
        newest, notes = newest_whole(run)
        if newest:
            return Claim(run, newest, notes=tuple(notes))
    elif occupied and not config.run.overwrite:
        raise ClipkitError(
            f"{run} exists: pass --resume auto to continue it, --overwrite to replace it, or --output DIR"
        )
    if occupied and not _is_run(run):
        raise ClipkitError(f"{run} exists and is no run directory, so it is not touched; pass another --output")
    return Claim(run, None, replaces=occupied)


def start_run(claimed: Claim, config: Config) -> None:
    """Make the directory, without what an old run left in it, and write the resolved config."""
    try:
        if claimed.replaces:
            shutil.rmtree(claimed.directory)
        claimed.directory.mkdir(parents=True, exist_ok=True)
        save_config(config, claimed.directory / CONFIG)
    except OSError as error:
        raise ClipkitError(
            f"{claimed.directory}: cannot be written ({error.strerror}); pass another --output"
        ) from None


def _is_run(folder: Path) -> bool:
    """Whether ``folder`` is a run's: its config names every setting, as only a resolved config does."""
    try:
        return set(read_settings(folder / CONFIG)) >= {"recipe", "train_data", "batch_size", "resume"}
    except ClipkitError:
        return False


def append_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records as JSON lines.

    Raises:
        ClipkitError: the disk is full, or the file cannot be written.
    """
    try:
        with path.open("ab") as file:
            file.writelines(map(_line, records))
    except OSError as error:
        raise ClipkitError(
            f"{path}: cannot be written ({error.strerror}); checkpoints are whole: free space, then --resume auto"
        ) from None


def cut_lines(path: Path, start: int) -> None:
    """Cut off the records of later steps than ``start`` of a JSON-lines file, if there is one; one process does."""
    if path.is_file():
        kept = lines_up_to(path, start)
        with atomic_write(path) as file:
            file.writelines(map(_line, kept))


def _line(record: dict[str, Any]) -> bytes:
    """A record as a line of JSON; what is no UTF-8 in a name is written as JSON escapes it."""
    return json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def lines_up_to(path: Path, start: int) -> list[dict[str, Any]]:
    """The records of a JSON-lines file up to step ``start``."""
    return [line for line in read_lines(path) if line.get("step", 0) <= start]


class Metrics:
    """``metrics.jsonl``: one JSON object per record, on disk as soon as it is written.

    Args:
        run: the run directory.
        start: step of the checkpoint that the run goes on from; records of later steps are cut off.
    """

    def __init__(self, run: Path, start: int) -> None:
        self.path = run / METRICS
        if start:
            cut_lines(self.path, start)
        else:
            with atomic_write(self.path):
                pass

    def write(self, record: dict[str, Any]) -> None:
        """Append a record."""
        append_lines(self.path, [record])


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The run's records; a half-written last line is left out."""
    return read_lines(run / METRICS)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file with one a line; lines that are none are left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return [record for record in records if isinstance(record, dict)]
