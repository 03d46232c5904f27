"""The checkpoints of a run: which there are, which are whole, which one counts, which may go."""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path

from clipkit.errors import ClipkitError
from clipkit.training.checkpoint import FOLDER, REPLACED, STATE, damage, read_state


@dataclass(frozen=True)
class Kept:
    """A checkpoint of a run.

    Attributes:
        path: its folder.
        step: steps done.
        written: seconds since 1970: after going back to an earlier checkpoint, the newest is not that of the last step.
        damage: what is wrong with it, or None.
    """

    path: Path
    step: int
    written: float
    damage: str | None


def survey(run: Path) -> list[Kept]:
    """All checkpoints of a run, whole or damaged, in the order in which they were written.

    One that was set aside for a new one of its step counts only where the new one did not get into its place.
    """
    found = []
    for path in (run / FOLDER).glob("*step-*"):
        name = re.fullmatch(rf"({re.escape(REPLACED)})?step-(\d+)", path.name)
        if not name or (name[1] and damage(path.with_name(f"step-{name[2]}")) is None):
            continue
        wrong = damage(path)
        try:
            state = read_state(path)
            found.append(Kept(path, state.step, state.written, wrong))
        except ClipkitError:
            if path.is_dir():  # a running job may have removed it since
                found.append(Kept(path, int(name[2]), path.stat().st_mtime, wrong))
    return sorted(found, key=lambda kept: (kept.written, kept.step))


def checkpoints(run: Path) -> list[Path]:
    """The run's whole checkpoints in the order in which they were written."""
    return [kept.path for kept in survey(run) if kept.damage is None]


def newest_whole(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that is whole to its last byte, and a line about every damaged one.

    Returns:
        (None, []) for a run without checkpoints.

    Raises:
        ClipkitError: there are checkpoints, and all of them are damaged.
    """
    found = survey(run)
    newest: Kept | None = None
    damaged: list[tuple[Kept, str, bool]] = []
    for kept in reversed(found):
        wrong = kept.damage or (damage(kept.path, contents=True) if newest is None else None)
        if wrong:
            damaged.append((kept, wrong, newest is None))
        elif newest is None:
            newest = kept
    if newest is None:
        if not found:
            return None, []
        raise _all_damaged(run, found[-1].path, damaged[0][1])
    lines = [
        f"{kept.path} is damaged ({wrong}); " + (f"going back to {newest.path.name}" if newer else "it is passed by")
        for kept, wrong, newer in damaged
    ]
    return newest.path, lines


def checkpoint_of(run: Path, step: int) -> Path | None:
    """The whole checkpoint of a step, if there is one."""
    return next((kept.path for kept in survey(run) if kept.step == step and kept.damage is None), None)


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` means: itself, or a run's best or newest one; damaged ones are passed by.

    Warns:
        UserWarning: a checkpoint is taken that is not the one that should be, because that one is damaged.

    Raises:
        ClipkitError: there is none, or none that is whole.
    """
    if (path / STATE).is_file():
        return path
    found = survey(path)
    whole = [kept for kept in found if kept.damage is None]
    if not whole:
        if found:
            raise _all_damaged(path, found[-1].path, str(found[-1].damage))
        raise ClipkitError(f"{path}: no checkpoint in it; give a run directory or a checkpoint folder")
    best = read_state(whole[-1].path).best
    chosen = next((kept for kept in whole if best and kept.step == best[1]), whole[-1])
    better = found[-1] if best is None else next((kept for kept in found if kept.step == best[1]), chosen)
    if better.damage:
        warnings.warn(f"{better.path} is damaged ({better.damage}); {chosen.path.name} is used instead", stacklevel=2)
    return chosen.path


def prune(run: Path, keep_last: int, best_step: int | None) -> None:
    """Delete what is older than the last ``keep_last`` whole checkpoints, except the best one, locked weights that no
    checkpoint has any more, and what a killed writer left: half-written files, and an old checkpoint whose place the
    new one has taken."""
    left = max(1, keep_last)
    for kept in reversed(survey(run)):
        if left == 0 and kept.step != best_step:
            shutil.rmtree(kept.path, ignore_errors=True)
        elif kept.damage is None:
            left = max(0, left - 1)
    for path in (run / FOLDER).glob(f"{REPLACED}*"):
        place = path.with_name(path.name.removeprefix(REPLACED))
        if not place.exists():
            path.rename(place)
        elif damage(place) is None:
            shutil.rmtree(path, ignore_errors=True)
    for path in (run / FOLDER).glob(".tmp-*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    for path in (run / FOLDER).glob("frozen-*.safetensors"):
        if path.stat().st_nlink == 1:  # checkpoints have links to it, or copies of their own
            path.unlink()


def _all_damaged(run: Path, newest: Path, wrong: str) -> ClipkitError:
    return ClipkitError(
        f"{run}: every checkpoint is damaged (the newest, {newest.name}: {wrong}); start again with --overwrite or "
        f"another --output"
    )
