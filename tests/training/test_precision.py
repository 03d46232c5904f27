"""The probe: speed must not cost exactness, and what was found is kept."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil
import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.training import precision
from clipkit.training.precision import apply_arithmetic, choose_arithmetic

CPU = torch.device("cpu")


def probed(monkeypatch: pytest.MonkeyPatch, highest: tuple[float, float], medium: tuple[float, float]) -> str:
    monkeypatch.setattr(precision, "_measure", lambda setting: {"highest": highest, "medium": medium}[setting])
    return choose_arithmetic("float32", CPU).matmul


def test_the_faster_setting_wins_only_if_it_is_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    assert probed(monkeypatch, (50.0, 3e-7), (110.0, 3e-7)) == "medium"
    assert probed(monkeypatch, (50.0, 3e-7), (110.0, 4e-3)) == "highest", "bf16 in disguise"
    assert probed(monkeypatch, (50.0, 3e-7), (50.5, 3e-7)) == "highest", "no gain worth a change"
    assert probed(monkeypatch, (50.0, 3e-7), (20.0, 3e-7)) == "highest"


def test_the_real_probe_finds_float32_and_changes_nothing() -> None:
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    found = choose_arithmetic("float32", CPU)
    assert (torch.get_float32_matmul_precision(), torch.get_num_threads()) == before
    assert found.error < 1e-5 and found.gflops > 0 and found.threads == before[1]
    assert found.autocast is None


def test_what_a_run_had_is_used_again() -> None:
    saved = choose_arithmetic("float32", CPU).to_dict() | {"matmul": "medium", "threads": 1, "precision": "bf16"}
    again = choose_arithmetic("float32", CPU, saved)
    assert again.to_dict() == saved
    apply_arithmetic(again, CPU)
    assert torch.get_num_threads() == 1 and torch.get_float32_matmul_precision() == "medium"
    assert again.autocast is torch.bfloat16


def test_auto_is_float32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_measure", lambda setting: (1.0, 1e-7))
    assert choose_arithmetic("auto", CPU).precision == "float32"
    assert choose_arithmetic("bf16", CPU).autocast is torch.bfloat16


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ClipkitError, match="fp8"):
        choose_arithmetic("fp8", CPU)


_TELL = "from clipkit.training.precision import own_threads; print(own_threads())"
_LAUNCHER = """
import os, subprocess, sys
os.environ.update(OMP_NUM_THREADS=os.environ.get("OMP_NUM_THREADS", "1"), ACCELERATE_MIXED_PRECISION="no")
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""


def threads(*command: str, **environment: str) -> int:
    plain = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, *command], env={**plain, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_a_launchers_one_thread_is_not_the_users_wish() -> None:
    cores = min(psutil.cpu_count(logical=False) or 1, len(os.sched_getaffinity(0)))
    assert threads("-c", _LAUNCHER, _TELL) == cores
    assert threads("-c", _LAUNCHER, _TELL, LOCAL_WORLD_SIZE="1000") == 1, "processes share the cores"


@pytest.mark.slow
def test_what_the_user_says_of_threads_stays() -> None:
    assert threads("-c", _LAUNCHER, _TELL, OMP_NUM_THREADS="1") == 1
    assert threads("-c", _TELL, OMP_NUM_THREADS="1") == 1
