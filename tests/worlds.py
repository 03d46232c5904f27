"""The same cases on 1, 2, ... gloo processes: a worker script is launched once, and forks before any tensor is made."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent
Found = dict[int, list[dict[str, Any]]]
Cases = Callable[[int, int, Sequence[str]], dict[str, Any]]
"""(rank, world, arguments of the script) -> what this rank found, by the name of the case."""


def launch(worker: Path, folder: Path, worlds: Sequence[int], *arguments: str) -> Found:
    """Run ``worker`` with results in ``folder``; what every rank of every world found."""
    import torch

    path = os.pathsep.join([str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(worker), str(folder), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {w: [torch.load(folder / f"results-{w}-{r}.pt") for r in range(w)] for w in worlds}


def run_worlds(worlds: Sequence[int], cases: Cases) -> None:
    """Called by the worker script: every world in turn; results go to FOLDER/results-W-RANK.pt."""
    import torch.multiprocessing as mp

    folder, *arguments = sys.argv[1:]
    mp.start_processes(_rank, (worlds, cases, folder, arguments), max(worlds), start_method="fork")  # type: ignore[no-untyped-call]


def _rank(rank: int, worlds: Sequence[int], cases: Cases, folder: str, arguments: Sequence[str]) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    for world in worlds:
        if rank >= world:
            continue
        if world > 1:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store-{world}", rank=rank, world_size=world)
        results = cases(rank, world, arguments)
        if world > 1:
            dist.barrier()
            dist.destroy_process_group()
        torch.save(results, Path(folder) / f"results-{world}-{rank}.pt")
