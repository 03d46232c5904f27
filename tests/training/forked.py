"""Runs of clipkit/train.py that are forked from a process which has imported everything already.

They are what ``python clipkit/train.py`` and ``torchrun`` start, without the seconds that each of their processes takes
to import torch. What launchers do themselves is tested with the launchers.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

FOLDER = Path(__file__).parent
SCRIPT = FOLDER.parents[1] / "clipkit" / "train.py"
IMPORTED = (
    "torch", "torch._dynamo", "torchvision", "timm", "open_clip", "accelerate", "clipkit.train", "clipkit.results",
    "clipkit.training.loop", "clipkit.training.strategy", "clipkit.encoders.from_open_clip",
)  # fmt: skip


class Forked:
    """A run, with what the tests use of ``subprocess.Popen``; its processes are a group of their own.

    Args:
        arguments: of the script.
        environment: the run's whole environment.
        ranks: processes, which find each other as torchrun's do.
        port: where they do; needed for more than one.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], ranks: int = 1, port: int = 0) -> None:
        _ensure_server(environment)
        self._files = tempfile.TemporaryDirectory()
        self._said = [Path(self._files.name) / name for name in ("out", "err")]
        given = list(arguments), environment, ranks, port, [str(path) for path in self._said]
        usual = multiprocessing.get_start_method()
        self._process = multiprocessing.get_context("forkserver").Process(target=_leader, args=(usual, *given))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        with suppress(ProcessLookupError):  # ended already
            while self.poll() is None and os.getpgid(self.pid) != self.pid:
                time.sleep(0.001)  # until then, who kills its group kills nothing

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a forked run", timeout or 0)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self.wait(timeout)
        out, err = (path.read_text() if path.exists() else "" for path in self._said)
        return out, err

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _ensure_server(environment: dict[str, str]) -> None:
    """Start the process that runs are forked from, if there is none yet: with the environment of a run, since libraries
    read theirs when they are imported."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment, PYTHONPATH=os.pathsep.join([str(SCRIPT.parents[1]), str(FOLDER)]))
    try:
        forkserver.set_forkserver_preload(list(IMPORTED))
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _leader(
    usual: str, arguments: list[str], environment: dict[str, str], ranks: int, port: int, said: list[str]
) -> None:
    """The run's first process, whose own processes start in the ``usual`` way."""
    os.setsid()
    multiprocessing.set_start_method(usual, force=True)
    for path, stream in zip(said, (1, 2), strict=True):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, stream)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    if ranks == 1:
        sys.exit(_script(arguments))
    of_all = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    going = set()
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            own = {**of_all, "RANK": rank, "LOCAL_RANK": rank}
            os.environ.update({name: str(value) for name, value in own.items()})
            os._exit(_script(arguments))
        going.add(pid)
    worst = 0
    while going:  # as torchrun does: when one fails, the others are ended
        pid, status = os.wait()
        going.discard(pid)
        if status and not worst:
            worst = 1
            time.sleep(0.1)
            for other in going:
                os.kill(other, signal.SIGTERM)
    sys.exit(worst)


def _script(arguments: list[str]) -> int:
    """The exit status of the script, after all that an interpreter does at its end."""
    status = 0
    sys.argv = [str(SCRIPT), *arguments]
    try:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status
