"""Every objective on many processes: loss and gradients are those of the dense form on one, rules included."""

from __future__ import annotations

import os
from pathlib import Path

import family_worker as worker
import pytest
import torch
from objectives_family import LOSSES, apart, gradients
from objectives_loops import ruled
from torch import Tensor
from worlds import Found, launch

WORKER = Path(worker.__file__)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(scope="module", params=["some", pytest.param("full", marks=pytest.mark.slow)])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every rank of every world found, from one launch."""
    return launch(WORKER, tmp_path_factory.mktemp("family"), worker.worlds_of(request.param), request.param)


def assembled(ranks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """One answer from every rank's piece, as averaging over ranks gives it."""
    assert all(torch.equal(r["value"], ranks[0]["value"]) for r in ranks), "all ranks see the same number"
    mean = {n: torch.stack([r[n] for r in ranks]).mean(0) for n in ("log_scale", "bias") if n in ranks[0]}
    pieces = {n: torch.cat([r[n] for r in ranks]) / len(ranks) for n in ("queries", "keys")}
    return {"value": ranks[0]["value"]} | pieces | mean


@pytest.mark.parametrize("world", worker.WORLDS)
def test_any_number_of_processes_is_one(found: Found, world: int) -> None:
    truths: dict[tuple[str, str], dict[str, Tensor]] = {}
    for name in found[world][0]:
        if not name.startswith(("tiled/", "dense/")):
            continue
        _, loss, kind, _, _ = name.split("/")
        if (loss, kind) not in truths:
            truths[loss, kind] = gradients(LOSSES[loss][1], ruled(kind))
        assert apart(assembled([r[name] for r in found[world]]), truths[loss, kind]) < 1e-12, name


@pytest.mark.parametrize("world", worker.WORLDS)
def test_saturated_and_faded_at_once(found: Found, world: int) -> None:
    """Each row's own maximum is taken, beside which some sums are nothing: no rank may take that for fading again."""
    for name in found[world][0]:
        if name.startswith("faded/"):
            _, loss, direction = name.split("/")
            true = gradients(LOSSES[loss][1], worker.faded(direction))
            size = max(float(x.norm()) for x in true.values())
            assert apart(assembled([r[name] for r in found[world]]), true) < 1e-12 * max(size, 1), name


@pytest.mark.parametrize("world", worker.WORLDS)
def test_all_ranks_have_the_estimates_of_one(found: Found, world: int) -> None:
    for ranks in found[world]:
        for name, true in found[1][0]["estimates"].items():
            torch.testing.assert_close(ranks["estimates"][name], true, rtol=1e-12, atol=0)
            assert torch.equal(ranks["estimates"][name], found[world][0]["estimates"][name])


@pytest.mark.parametrize("world", worker.WORLDS)
def test_cleared_cells_are_counted_over_all_ranks(found: Found, world: int) -> None:
    for kind in ("itself groups", "captions groups", "queue all grouped"):
        true = ruled(kind).cleared()
        assert true > 0 and all(r[f"cleared/{kind}"] == true for r in found[world])
