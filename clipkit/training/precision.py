"""Which arithmetic is fast and right on this machine, found out once and written down."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from clipkit.errors import ClipkitError

_SIZE = 512
_WORTH = 1.1  # times faster before another setting is worth its name
_LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # set by the launchers


@dataclass(frozen=True)
class Arithmetic:
    """How a run computes. Saved with the run and used again on resume: it changes the last bits.

    Attributes:
        precision: ``float32`` or ``bf16`` (autocast of the towers; scores stay float32).
        matmul: setting of ``torch.set_float32_matmul_precision``.
        threads: intra-op threads.
        gflops: measured rate of a float32 matrix product under ``matmul``, in 1e9 operations a second.
        error: its largest error against float64, relative to the largest entry.
    """

    precision: str
    matmul: str
    threads: int
    gflops: float
    error: float

    @property
    def autocast(self) -> torch.dtype | None:
        """Autocast dtype of the towers; None for float32."""
        return torch.bfloat16 if self.precision == "bf16" else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def choose_arithmetic(precision: str, device: torch.device, saved: dict[str, Any] | None = None) -> Arithmetic:
    """The run's arithmetic: what a resumed run had, or what a probe of this machine finds.

    On a CPU the float32 product is measured under ``highest`` (the BLAS library) and ``medium`` (oneDNN, which on
    many CPUs is still true float32 and 2x as fast, on others rounds to bf16). The faster wins only if its error
    is that of float32. On accelerators nothing is changed.
    """
    if saved is not None:
        return Arithmetic(**saved)
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if precision not in ("float32", "bf16"):
        raise ClipkitError(f"--precision is {precision!r}; it is float32, bf16 or auto")
    if device.type != "cpu":
        return Arithmetic(precision, torch.get_float32_matmul_precision(), torch.get_num_threads(), 0.0, 0.0)
    before = torch.get_float32_matmul_precision(), torch.get_num_threads()
    threads = own_threads()
    try:
        torch.set_num_threads(threads)
        rate, error = _measure("highest")
        fast_rate, fast_error = _measure("medium")
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.set_num_threads(before[1])
    if fast_rate > _WORTH * rate and fast_error <= 2 * error:
        return Arithmetic(precision, "medium", threads, fast_rate, fast_error)
    return Arithmetic(precision, "highest", threads, rate, error)


def apply_arithmetic(arithmetic: Arithmetic, device: torch.device) -> None:
    """Set it for the whole process. Only the main job does this; importing clipkit changes no global setting."""
    if device.type == "cpu":
        torch.set_float32_matmul_precision(arithmetic.matmul)
        torch.set_num_threads(arithmetic.threads)


def own_threads() -> int:
    """Intra-op threads for this process: torch's own number, unless only a launcher asked for one.

    ``accelerate launch`` and ``torchrun`` set ``OMP_NUM_THREADS=1`` where the user has set nothing, which leaves all
    cores but one idle. What the user has set stays: it is in the launcher's environment too.
    """
    if os.environ.get("OMP_NUM_THREADS") != "1" or not any(name in os.environ for name in _LAUNCHED):
        return torch.get_num_threads()
    try:
        launcher = psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return torch.get_num_threads()
    if "OMP_NUM_THREADS" in launcher or any(name in launcher for name in _LAUNCHED):
        return torch.get_num_threads()
    cores = psutil.cpu_count(logical=False) or 1
    if hasattr(os, "sched_getaffinity"):
        cores = min(cores, len(os.sched_getaffinity(0)))
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _measure(setting: str) -> tuple[float, float]:
    torch.set_float32_matmul_precision(setting)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(_SIZE, _SIZE, generator=generator) for _ in range(2))
    exact = a.double() @ b.double()
    error = float(((a @ b).double() - exact).abs().max() / exact.abs().max())
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        best = min(best, (time.perf_counter() - start) / 4)
    return round(2 * _SIZE**3 / best / 1e9, 1), error
