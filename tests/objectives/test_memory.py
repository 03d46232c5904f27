"""The table never exists: peak memory of a forward and a backward pass, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no peak to read")

SCRIPT = """
import contextlib, sys, torch
from clipkit import objectives
from clipkit.objectives import Comparison, Tiling

torch.set_num_threads(1)
name, n, keep, rules = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
loss = objectives.GlobalContrastive(n) if name == "global" else getattr(objectives, name)


def mib(name):
    line = next(x for x in open("/proc/self/status") if x.startswith(name))
    return int(line.split()[1]) / 1024


def step(n):
    features = [torch.nn.functional.normalize(torch.randn(n, 64), dim=1).requires_grad_() for _ in range(2)]
    scale = torch.zeros(1, requires_grad=True)
    ids = torch.arange(n)
    fields = {}
    if "alike" in rules:  # one group for all, as MoCo has it: no cell but the positives counts
        fields = dict(query_groups=0 * ids[:, None], key_groups=0 * ids[:, None], queue=features[0].detach())
    elif "groups" in rules:
        fields = dict(query_groups=ids[:, None] // 3, key_groups=ids[:, None] // 3)
    loss(Comparison(*features, ids, ids, scale, **fields), tiling=Tiling(keep_bytes=keep)).backward()
    assert all(x.grad is not None for x in (*features, scale))


step(1024)  # a whole tile: libraries have made their buffers
with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew; getrusage's would be the parent's
before = mib("VmRSS")
step(n)
print(mib("VmHWM") - before)
"""


def growth(loss: str, n: int, keep: int, *rules: str) -> float:
    """MiB at the peak of a step with n pairs, above what the process has before."""
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, loss, str(n), str(keep), *rules],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return float(done.stdout)


@pytest.mark.parametrize("loss", ["infonce", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_eight_thousand_pairs_take_a_fraction_of_their_table(loss: str) -> None:
    """Their table is 256 MiB; features and gradients are 8 MiB, a tile 4."""
    assert growth(loss, 8192, 0) < 40


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["margin", "negative_cosine", "hard_infonce", "global"])
def test_so_do_the_other_objectives(loss: str) -> None:
    assert growth(loss, 8192, 0) < 70


@pytest.mark.slow
def test_a_strip_of_triplets_is_no_table() -> None:
    """A strip's cells in float64, their order and its sums."""
    assert growth("triplet", 8192, 0) < 120


@pytest.mark.slow
@pytest.mark.parametrize("rules", ["groups", "alike"])
def test_cells_that_do_not_count_are_never_listed(rules: str) -> None:
    assert growth("infonce", 8192, 0, rules) < 70


@pytest.mark.slow
def test_what_is_kept_stays_within_its_budget() -> None:
    """A table of 256 MiB, of which 100 may be kept."""
    assert 80 < growth("infonce", 8192, 100 << 20) < 140
