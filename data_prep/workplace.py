"""The folder that a data set is made in: claimed, gone on with after a crash, published when it is whole."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO, Any

from clipkit.cache import atomic_write
from clipkit.errors import ClipkitError
from data_prep.files import wait_for_disk
from data_prep.records import SPLITS, Skipped

WORK = ".work"
MASK = ".keep.npz"
FILTERS = "filters.json"
CARD = ("data_card.md", "stats.json", "contact_sheet.jpg")
_PATIENCE = 10.0  # seconds that another preparation is waited for


def is_whole(out: str | Path) -> bool:
    """Whether a data set of ours at ``out`` was finished."""
    return _published(Path(out)) is not None


def _published(out: Path) -> dict[str, Any] | None:
    """What the data set's ``dataset.json`` says; None without one of ours (others use that name as well)."""
    try:
        said = json.loads((out / "dataset.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and {"inputs", "splits"} <= said.keys() else None


class Workplace:
    """``out`` while it is made.

    Attributes:
        staged, evaluation, shards, receipts: folders below ``out/.work``.
        lock: held until ``close``, by this process and by those that work for it.
        dataset: what ``out/dataset.json`` says, when the very same data set is there already.
        mending: whether it is there but pictures are missing that may be there now.
    """

    def __init__(self, out: Path, inputs: str, overwrite: bool) -> None:
        """Claim ``out`` for the data set that ``inputs`` (a digest) describes.

        Raises:
            ClipkitError: ``out`` is a file, holds another data set or other people's files, or another process is
                writing there.
        """
        self.out, self._inputs = out, inputs
        self.work = out / WORK
        self.staged, self.shards = self.work / "staged", self.work / "shards"
        self.evaluation, self.receipts = self.work / "evaluation", self.work / "receipts"
        self.dataset: dict[str, Any] | None = None
        self.mending = False
        self.lock: IO[bytes] | None = None
        if out.exists() and not out.is_dir():
            raise ClipkitError(f"{out}: a file of that name exists; choose another folder")
        there, same_plan = _published(out), self._planned() == inputs
        if there is not None and not overwrite:
            if there["inputs"] != inputs:
                raise ClipkitError(
                    f"{out} holds a data set already, of another source or made in another way; choose another "
                    f"folder, or pass --overwrite"
                )
            self.dataset, self.mending = there, same_plan
            if not self.mending:
                return
        elif out.is_dir() and any(out.iterdir()) and there is None and not self.work.is_dir():
            raise ClipkitError(f"{out} is not empty and holds no data set of ours; choose another folder")
        again = there is not None and overwrite and there["inputs"] == inputs  # all of it, from the start
        self._claim(keep=same_plan and not again)

    def _planned(self) -> str | None:
        try:
            return (self.work / "inputs").read_text()
        except OSError:
            return None

    def _claim(self, keep: bool) -> None:
        """Make the work folder, with what an earlier run left there if it made the same."""
        self.work.mkdir(parents=True, exist_ok=True)  # from here on, what lies in out was put there by a preparation
        self.lock = open(self.work / "lock", "wb")  # noqa: SIM115 - held until close
        if not _locked(self.lock):
            self.lock.close()
            raise ClipkitError(
                f"{self.out}: another preparation is writing there; wait for it, or choose another folder"
            )
        if not self._is_ours():
            self.lock.close()
            raise ClipkitError(f"{self.out}: another preparation ended there just now; run the same command again")
        whole = is_whole(self.out)
        self._replaces_filters = not keep or (whole and not self.mending)
        if not keep:
            (self.work / "inputs").unlink(missing_ok=True)  # first, so that a kill leaves no half of what it stands for
            for folder in (self.staged, self.shards, self.evaluation, self.receipts):
                shutil.rmtree(folder, ignore_errors=True)
        self.shards.mkdir(exist_ok=True)
        for split in SPLITS:
            public, own = self.out / split, self.shards / split
            if whole:  # it stays as it is until another one is there to take its place
                if self.mending and public.is_dir():
                    shutil.rmtree(own, ignore_errors=True)
                    shutil.copytree(public, own, copy_function=_link)
            elif keep and public.is_dir() and not own.is_dir():  # half published: back to work
                os.replace(public, own)
            else:  # every split has its own until that one is published, so this is what was to be replaced
                shutil.rmtree(public, ignore_errors=True)
            own.mkdir(exist_ok=True)
        for folder in (self.staged, self.evaluation, self.receipts):
            folder.mkdir(exist_ok=True)
        for pattern in (f"{WORK}/**/.*.tmp", ".skipped.jsonl.*.tmp", ".dataset.json.*.tmp"):
            for unfinished in self.out.glob(pattern):
                unfinished.unlink(missing_ok=True)
        for mask in self.shards.glob(f"*/*{MASK}"):  # a mask is of one plan's shards
            mask.unlink()
        with atomic_write(self.work / "inputs") as file:
            file.write(self._inputs.encode())

    def _is_ours(self) -> bool:
        """Whether the lock is of the file that is there now, not of one whose holder has removed it."""
        assert self.lock is not None
        if self.lock.closed:
            return True
        try:
            return os.path.samestat(os.fstat(self.lock.fileno()), os.stat(self.lock.name))
        except OSError:
            return False

    def keep_only(self, shards: Collection[Path]) -> None:
        """Delete the shards that are not among ``shards``, which another plan had left."""
        for tar in self.shards.glob("*/*.tar"):
            if tar not in shards:
                for file in tar.parent.glob(tar.name + "*"):
                    file.unlink()

    def publish(self, dataset: dict[str, Any], skipped: Sequence[Skipped], keep_work: bool) -> None:
        """Move the finished shards into the place of what was there; ``dataset.json`` comes last."""
        if self._replaces_filters:
            (self.out / FILTERS).unlink(missing_ok=True)
        for name in ("dataset.json", "skipped.jsonl", *CARD):  # from here on, only ``.work`` knows what is to be made
            (self.out / name).unlink(missing_ok=True)
        for split in SPLITS:
            shutil.rmtree(self.out / split, ignore_errors=True)
        if skipped:
            with atomic_write(self.out / "skipped.jsonl") as file:
                for entry in skipped:
                    said = {"file": entry.file, "reason": entry.reason, "kind": entry.kind}
                    file.write(json.dumps(said, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
        for split in dataset["splits"]:
            os.replace(self.shards / split, self.out / split)
        wait_for_disk()
        with atomic_write(self.out / "dataset.json") as file:
            text = json.dumps({**dataset, "inputs": self._inputs}, ensure_ascii=False, indent=1)
            file.write(text.encode("utf-8", "backslashreplace") + b"\n")
        if not keep_work:
            shutil.rmtree(self.work, ignore_errors=True)
        self.close()

    def abandon(self, keep_work: bool) -> None:
        """Leave ``out`` as it was, or, with ``keep_work``, what a second run can go on with."""
        if not keep_work:
            shutil.rmtree(self.work, ignore_errors=True)
            if not any(self.out.iterdir()):
                self.out.rmdir()
        self.close()

    def close(self) -> None:
        """Let others write here."""
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def _link(source: str, target: str) -> None:
    """A second name for a file, which is replaced and never written into; a copy where there are no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _locked(file: IO[bytes]) -> bool:
    """Lock ``file`` until it is closed, however the process ends; True where files cannot be locked.

    The processes of a killed preparation let go when they notice, which is soon: they are waited for.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where an open file could not be removed
        file.close()
        return True
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        except OSError:  # a network file system without locks
            return True
        else:
            return True
