"""The contract of many processes: loss and gradient are those of one process with the whole batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("ranks_worker.py")
ROOT = WORKER.parents[2]
CASES = ["pairs", "as few as ranks", "captions", "positives elsewhere", "no positives", "none at all"]
WORLDS = (2, 3, 4)

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What every rank of every world found, from one launch."""
    folder = tmp_path_factory.mktemp("ranks")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {w: [torch.load(folder / f"results-{w}-{r}.pt") for r in range(w)] for w in (1, *WORLDS)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
@pytest.mark.parametrize("world", WORLDS)
def test_any_number_of_processes_is_one(
    results: dict[int, list[dict[str, Any]]], world: int, loss: str, case: str
) -> None:
    for scale in ("3", "100"):
        name = f"{case}/{loss}/{scale}"
        expected = results[1][0][name]
        if not (case == "none at all" and loss == "infonce"):
            assert float(expected["gradients"]["log_scale"].abs()) > 1e-9, "a case that proves nothing"
        for rank, ranks in enumerate(results[world]):
            got = ranks[name]
            torch.testing.assert_close(
                got["loss"], expected["loss"], rtol=1e-12, atol=1e-12, msg=f"loss of rank {rank}"
            )
            assert set(got["gradients"]) == set(expected["gradients"])
            for parameter, gradient in expected["gradients"].items():
                torch.testing.assert_close(
                    got["gradients"][parameter], gradient, rtol=1e-12, atol=1e-12, msg=f"{parameter} on rank {rank}"
                )


@pytest.mark.parametrize("world", WORLDS)
def test_all_ranks_see_the_same_number(results: dict[int, list[dict[str, Any]]], world: int) -> None:
    """To the last bit: what a rank decides on a loss (stop, fall back, keep the best) all ranks must decide."""
    first = {n: r["loss"] for n, r in results[world][0].items() if "loss" in r}
    assert len(first) > 10
    apart = [n for ranks in results[world] for n in first if not torch.equal(ranks[n]["loss"], first[n])]
    assert not apart


@pytest.mark.parametrize("world", WORLDS)
def test_rows_are_gathered_in_order_and_their_gradients_summed(
    results: dict[int, list[dict[str, Any]]], world: int
) -> None:
    counts = [(3 * r + 1) % 4 for r in range(world)]
    parts = [torch.arange(n * 2.0, dtype=torch.float64).view(-1, 2) + 100 * r for r, n in enumerate(counts)]
    expected = torch.cat(parts)
    weights = torch.arange(expected.numel(), dtype=torch.float64).view_as(expected) + 1
    shares = (weights * sum(range(1, world + 1))).split(counts)
    for rank, ranks in enumerate(results[world]):
        got = ranks["exchange"]
        assert torch.equal(got["everyone"], expected)
        assert torch.equal(got["grad"], shares[rank])
        assert float(got["total"]) == float(got["x_grad"]) == sum(range(1, world + 1))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("loss", ["infonce", "sigmoid"])
def test_few_collectives_and_no_table_in_them(results: dict[int, list[dict[str, Any]]], world: int, loss: str) -> None:
    """Every rank calls the same, as often for 40 pairs as for 3; keys travel once, their gradient once."""
    first = results[world][0]["collectives"][loss]
    assert all(ranks["collectives"][loss] == first for ranks in results[world]), "ranks would wait for one another"
    small, large = first
    assert (small["forward"], small["backward"]) == (large["forward"], large["backward"])
    assert large["forward"]["gather"] <= 2  # keys and their ids
    assert large["forward"]["reduce"] <= 5
    assert large["backward"].get("scatter") == 1
    assert large["backward"].get("reduce", 0) <= (1 if loss == "infonce" else 0)
    assert "other" not in large["forward"] and "other" not in large["backward"]
    assert large["largest"] <= 4 * 40 * world, "more than the keys' D (4) or a few floats a column were sent"
