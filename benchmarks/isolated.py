"""A measurement in a process of its own: CPU seconds and peak memory, nothing left over from others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def measured(run: Callable[[], Any], repeats: int = 1) -> dict[str, float]:
    """CPU and wall seconds of ``run``, the least of ``repeats`` (best against other programs' noise)."""
    cpu, wall = float("inf"), float("inf")
    for _ in range(repeats):
        c, w = time.process_time(), time.perf_counter()
        run()
        cpu, wall = min(cpu, time.process_time() - c), min(wall, time.perf_counter() - w)
    return {"cpu_seconds": cpu, "wall_seconds": wall}


def resident() -> int:
    """Bytes of memory that this process has now."""
    return _status("VmRSS")


def forget_peak() -> None:
    """Start the peak anew from what is resident now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Most bytes that were resident since ``forget_peak``."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {field} in /proc/self/status: memory is measured on Linux only")


def pin_threads(n: int) -> None:
    """Let the processes to come use ``n`` threads."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(n)


def in_process(script: str, arguments: dict[str, Any], timeout: float = 7200) -> dict[str, Any] | None:
    """What ``python SCRIPT --one JSON`` prints as its last line; None if the process was killed or failed."""
    command = [sys.executable, script, "--one", json.dumps(arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=timeout, env=dict(os.environ))
    if done.returncode != 0:
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])
