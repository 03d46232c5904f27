"""Tasks run the same here, in processes and on Ray, and what goes wrong there is told here."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from data_prep_helpers import bad, content, die, die_once, double, pictures, whose

from clipkit.errors import ClipkitError
from data_prep.engine import WorkerProcess, run_tasks
from data_prep.records import Record
from data_prep.shards import write_shards
from data_prep.stage import PIECE


def test_results_come_in_order_from_other_processes() -> None:
    assert list(run_tasks(double, range(20), 3)) == [2 * n for n in range(20)] == list(run_tasks(double, range(20)))
    pids = set(run_tasks(whose, range(8), 2))
    assert len(pids) <= 2 and os.getpid() not in pids
    assert set(run_tasks(whose, range(8), 1)) == {os.getpid()}
    assert list(run_tasks(double, [], 4)) == []


def test_errors_and_deaths_are_told() -> None:
    with pytest.raises(ClipkitError, match="three is bad"):
        list(run_tasks(bad, range(9), 2))
    worker = WorkerProcess()
    with pytest.raises(ClipkitError, match=r"a process of die died twice on the same task \(signal 9\)"):
        worker(die, 0)
    assert worker(double, 2) == 4  # another process took its place
    worker.close()


def test_a_process_that_dies_once_is_replaced(tmp_path: Path) -> None:
    assert list(run_tasks(die_once, [str(tmp_path / "a"), str(tmp_path / "a")], 2)) == ["alive", "alive"]


def test_without_ray_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ClipkitError, match=r'pip install "clipkit\[ray\]"'):
        list(run_tasks(double, [1], engine="ray"))


@pytest.mark.slow
def test_ray_gives_the_same_bytes(tmp_path: Path) -> None:
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install clipkit[ray]")
    same = [Record(p.stem, p, (f"c {p.stem}",)) for p in pictures(tmp_path / "in", PIECE + 5)]
    try:
        write_shards(same, tmp_path / "ray", 100, engine="ray")
        with pytest.raises(ClipkitError, match="three is bad"):
            list(run_tasks(bad, range(5), engine="ray"))
    finally:
        ray.shutdown()
    write_shards(same, tmp_path / "local", 100, processes=2)
    assert content(tmp_path / "ray") == content(tmp_path / "local")


HOLDER = """
import sys
sys.path[:0] = {path!r}
from data_prep_helpers import wait_for
from data_prep.engine import run_tasks
import fcntl
lock = open({lock!r}, "wb")
fcntl.flock(lock, fcntl.LOCK_EX)
list(run_tasks(wait_for, [{flag!r} + "a", {flag!r} + "b"], 2, lock=lock))
"""


def test_the_processes_of_a_killed_parent_keep_the_lock_and_end(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    code = HOLDER.format(
        path=[os.getcwd(), str(Path(__file__).parent)], lock=str(tmp_path / "lock"), flag=str(tmp_path / "flag")
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    while len(pids := [int(p.read_text()) for p in tmp_path.glob("flag?.pid")]) < 2:
        time.sleep(0.02)
        assert parent.poll() is None
    for pid in pids:  # they cannot notice while they are stopped
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    with open(tmp_path / "lock", "wb") as again:
        with pytest.raises(BlockingIOError):
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        fcntl.flock(again, fcntl.LOCK_EX)  # waits until the last of them has ended, in the middle of its task
    assert not list(tmp_path.glob("flag?.done"))
