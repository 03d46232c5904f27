"""DDP and FSDP2 over gloo train the weights that one process trains, with or without micro-batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from clipkit.config import ModelConfig, RunConfig
from clipkit.encoders import build
from clipkit.errors import ClipkitError
from clipkit.training import strategy
from clipkit.training.strategy import collect, distribute, make_accelerator, units

ROOT = Path(__file__).resolve().parents[2]
CASES = [(kind, micro) for kind in ("ddp", "fsdp", "fsdp, weights stay") for micro in (None, 2)]
CASES += [("fsdp", 5)]  # 6 rows and 5: two pieces on one process and one on the other
SHARDED = [case for case in CASES if case[0] != "ddp"]
Results = dict[tuple[str, int | None], dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[Results]]:
    """What one process found, and what each of two did, from one launch."""
    folder = tmp_path_factory.mktemp("strategy")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("strategy_worker.py")), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = torch.load(folder / "1-0.pt", weights_only=False)["ddp", None]
    return one, [torch.load(folder / f"2-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_ten_steps_give_the_weights_of_one_process(
    results: tuple[dict[str, Any], list[Results]], case: tuple[str, int | None]
) -> None:
    """Clipped, in float64, and through a checkpoint of the optimizer after the fifth."""
    one, ranks = results
    assert max(one["norms"]) > 0.5, "nothing was clipped"
    for rank in ranks:
        torch.testing.assert_close(torch.tensor(rank[case]["losses"]), torch.tensor(one["losses"]), rtol=1e-6, atol=0)
        torch.testing.assert_close(torch.tensor(rank[case]["norms"]), torch.tensor(one["norms"]), rtol=1e-10, atol=0)
        difference = sum(float((rank[case]["weights"][n] - w).square().sum()) for n, w in one["weights"].items())
        size = sum(float(w.square().sum()) for w in one["weights"].values())
        assert difference**0.5 <= 1e-12 * size**0.5


@pytest.mark.slow
@pytest.mark.parametrize("case", SHARDED)
def test_parameters_are_shards_and_the_second_process_has_none_of_the_temperature(
    results: tuple[dict[str, Any], list[Results]], case: tuple[str, int | None]
) -> None:
    for rank, found in enumerate(results[1]):
        assert found[case]["kinds"] == {"DTensor"}
        assert found[case]["scale_shard"] == 1 - rank
        assert found[case]["units"] == 2 + 2 + 1  # two blocks a tower, and the rest


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp", "fsdp, weights stay"])
def test_every_unit_is_reduced_once_a_step_however_many_pieces(
    results: tuple[dict[str, Any], list[Results]], kind: str
) -> None:
    for found in results[1]:
        whole, pieces = found[kind, None]["calls"], found[kind, 2]["calls"]
        assert whole["scatter"] == pieces["scatter"] == 5
        # The rest once; a block for every piece, forward and backward, or half as often where its weights stay.
        blocks, n_pieces, passes = 4, 3, 2 if kind == "fsdp" else 1
        assert whole["gather"] == 1 + blocks * passes
        assert pieces["gather"] == 1 + blocks * passes * n_pieces


def test_blocks_are_found_in_each_librarys_towers(tiny: Path) -> None:
    model = build(ModelConfig(str(tiny)))
    assert [type(u).__name__ for u in units(model)] == ["ResidualAttentionBlock"] * 4
    mixed = nn.ModuleDict(
        {
            "unlike": nn.Sequential(nn.Linear(2, 2), nn.GELU()),
            "empty": nn.Sequential(nn.GELU(), nn.GELU()),
            "single": nn.ModuleList([nn.Linear(2, 2)]),
            "nested": nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(3))),
        }
    )
    assert list(units(mixed)) == list(mixed["nested"])  # type: ignore[call-overload]


def test_nothing_is_sharded_unless_the_config_says_so(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(ModelConfig(str(tiny)))
    monkeypatch.setattr(strategy, "world_size", lambda: 2)
    asked: list[bool] = []
    monkeypatch.setattr(strategy, "shard", lambda model, reshard_after_forward: asked.append(reshard_after_forward))
    assert distribute(model, Accelerator(cpu=True)) is model and not asked
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    distribute(model, Accelerator(cpu=True))
    monkeypatch.setenv("FSDP_RESHARD_AFTER_FORWARD", "false")
    distribute(model, Accelerator(cpu=True))
    assert asked == [True, False]
    monkeypatch.setenv("FSDP_OFFLOAD_PARAMS", "true")
    with pytest.raises(ClipkitError, match="fsdp_offload_params"):
        distribute(model, Accelerator(cpu=True))
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ClipkitError, match="fsdp_version: 2"):
        distribute(model, Accelerator(cpu=True))


def test_collect_moves_nothing_without_shards(tiny: Path) -> None:
    model = build(ModelConfig(str(tiny)))
    before = {n: p._version for n, p in model.named_parameters()}
    collect(model, model)
    assert {n: p._version for n, p in model.named_parameters()} == before


def test_an_unknown_tracker_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ClipkitError, match="--log-with nonsense"):
        make_accelerator(RunConfig(log_with="nonsense"), str(tmp_path))


def test_a_second_run_in_processes_that_an_earlier_one_has_parted_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.state import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {"num_processes": 2})  # and no process group any more
    with pytest.raises(ClipkitError, match="launch every run of several anew"):
        make_accelerator(RunConfig(), str(tmp_path))
