"""Shard tasks on one core, on all cores, or on a Ray cluster: the same functions, the same results.

A task is a module's function and one argument. It is idempotent (its result lies in files that are whole or absent),
so it may be run again after a crash, and on another machine that sees the same files.

The local processes are plain runs of ``data_prep.worker`` and not ``multiprocessing``: that would fork a program that
may have threads and torch in it, or import its main module anew, which a notebook or a script without a main guard
does not survive.
"""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import IO, Any, Literal

from clipkit.errors import ClipkitError

Engine = Literal["local", "ray"]
_AHEAD = 2  # tasks handed out per process before their results are taken


def run_tasks(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    processes: int = 1,
    engine: Engine = "local",
    lock: IO[bytes] | None = None,
) -> Iterator[Any]:
    """``function(task)`` of every task, in their order.

    Args:
        function: a function at the top of a module; with more than one process, tasks and results are pickled.
        processes: processes on this machine; 1 runs in this one.
        engine: ``local``, or ``ray``: on the cluster at ``$RAY_ADDRESS``, or a Ray of this machine without one.
        lock: a locked file that local processes hold with this one: were this one killed, it is free when the last of
            them has ended.

    Raises:
        ClipkitError: a process died twice on the same task, or Ray is not installed; and whatever ``function``
            raises.
    """
    if engine == "ray":
        return _on_ray(function, tasks)
    processes = min(processes, len(tasks))
    return map(function, tasks) if processes <= 1 else _in_processes(function, tasks, processes, lock)


def cores() -> int:
    """Cores that this process may use, at most eight."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, usable)


class WorkerProcess:
    """One process that runs tasks, started on its first task and again after it died."""

    def __init__(self, lock: IO[bytes] | None = None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._inherited = () if lock is None or os.name == "nt" else (lock.fileno(),)

    def __call__(self, function: Callable[[Any], Any], task: Any) -> Any:
        """``function(task)``, run over there."""
        request = pickle.dumps((function, task))
        for _ in range(2):
            reply = self._ask(request)
            if reply is not None:
                kind, value = pickle.loads(reply)
                if kind == "raised":
                    raise value
                return value
        raise ClipkitError(
            f"a process of {function.__name__} died twice on the same task ({_death(self._status)}); "
            f"pass --processes 1 to see where"
        )

    def _ask(self, request: bytes) -> bytes | None:
        """The reply to one message, or None if the process died."""
        if self._process is None:
            self._process = _start(self._inherited)
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            send(self._process.stdin, request)
            reply = receive(self._process.stdout)
        except BrokenPipeError:
            reply = None
        if reply is None:
            self._status = self._process.wait()
            self._process = None
        return reply

    def close(self) -> None:
        """End the process, which must not be running a task."""
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()
            self._process = None


def send(pipe: IO[bytes], message: bytes) -> None:
    """Write one message with its length in front."""
    pipe.write(struct.pack("<Q", len(message)) + message)
    pipe.flush()


def receive(pipe: IO[bytes]) -> bytes | None:
    """The next message, or None at the end."""
    head = pipe.read(8)
    if len(head) < 8:
        return None
    (length,) = struct.unpack("<Q", head)
    message = pipe.read(length)
    return message if len(message) == length else None


def _start(inherited: tuple[int, ...]) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(p for p in sys.path if p)
    command = [sys.executable, "-c", "from data_prep.worker import main; main()"]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}  # a process a core: no threads beside it
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment, pass_fds=inherited)


def _death(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"exit status {status}"


def _in_processes(
    function: Callable[[Any], Any], tasks: Sequence[Any], processes: int, lock: IO[bytes] | None
) -> Iterator[Any]:
    workers = [WorkerProcess(lock) for _ in range(processes)]
    idle: SimpleQueue[WorkerProcess] = SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def run(task: Any) -> Any:
        worker = idle.get()
        try:
            return worker(function, task)
        finally:
            idle.put(worker)

    with ThreadPoolExecutor(processes) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(run, task))
                if len(waiting) >= _AHEAD * processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            pool.shutdown(wait=True)
            for worker in workers:
                worker.close()


def _on_ray(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    try:
        import ray
    except ImportError:
        raise ClipkitError('--engine ray needs Ray: pip install "clipkit[ray]", or leave --engine out') from None
    if not ray.is_initialized():
        path = os.pathsep.join(os.path.abspath(p) for p in sys.path if p)
        ray.init(
            log_to_driver=False,
            include_dashboard=False,
            logging_level="ERROR",
            runtime_env={"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}},
        )
    remote = ray.remote(function)
    ahead = _AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    try:
        for task in tasks:
            waiting.append(remote.remote(task))
            if len(waiting) >= ahead:
                yield _ray_result(ray, waiting.popleft())
        while waiting:
            yield _ray_result(ray, waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _ray_result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        said = " ".join(str(error).split())
        raise ClipkitError(f"Ray lost a task ({said[:200]}); run the same command again to go on") from None
