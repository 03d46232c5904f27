"""Methods of two views: on 2 and 3 processes they are what they are on one, momentum encoder and queue included."""

from __future__ import annotations

import os
from pathlib import Path

import methods_worker as worker
import pytest
import torch
from worlds import Found, launch

WORKER = Path(worker.__file__)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forked")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What every rank of every world found, from one launch."""
    return launch(WORKER, tmp_path_factory.mktemp("methods"), worker.WORLDS)


@pytest.mark.slow
@pytest.mark.parametrize("world", worker.WORLDS[1:])
@pytest.mark.parametrize("name", list(worker.RECIPES))
def test_many_processes_are_one(found: Found, name: str, world: int) -> None:
    one = found[1][0][name]
    assert len(set(one["losses"])) == worker.STEPS, "the steps differ"
    for ranks in found[world]:
        assert ranks[name]["losses"] == pytest.approx(one["losses"], rel=1e-9)
        assert ranks[name]["state"].keys() == one["state"].keys()
        for key, wanted in one["state"].items():
            torch.testing.assert_close(ranks[name]["state"][key], wanted, rtol=1e-7, atol=1e-9, msg=f"{name} {key}")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moco", "byol"])
def test_sharded_weights_are_the_same(found: Found, name: str) -> None:
    one = found[1][0][name]
    for ranks in found[2]:
        sharded = ranks[f"{name}, sharded"]
        assert sharded["losses"] == pytest.approx(one["losses"], rel=1e-9)
        for key, wanted in one["state"].items():
            torch.testing.assert_close(sharded["state"][key], wanted, rtol=1e-7, atol=1e-9, msg=f"{name} {key}")


@pytest.mark.slow
def test_batchnorm_over_processes_is_that_of_the_whole_batch(found: Found) -> None:
    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(worker.BATCH, 4, 3, 5, generator=generator, dtype=torch.float64) * 3 + 100
    weight = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    norm = torch.nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    whole.requires_grad_()
    out = norm(whole)
    (out * weight).sum().backward()
    for world in worker.WORLDS:
        ranks = [r["batchnorm"] for r in found[world]]
        torch.testing.assert_close(torch.cat([r["out"] for r in ranks]), out.detach(), rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(torch.cat([r["grad"] for r in ranks]), whole.grad, rtol=1e-9, atol=1e-11)
        for rank in ranks:
            torch.testing.assert_close(rank["mean"], norm.running_mean, rtol=1e-12, atol=0)
            torch.testing.assert_close(rank["var"], norm.running_var, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_the_same_negatives_are_mined(found: Found) -> None:
    one = found[1][0]["mined"]
    assert (one[:12] >= 0).sum() > 6
    assert all(torch.equal(one, ranks["mined"]) for world in worker.WORLDS for ranks in found[world])


@pytest.mark.slow
def test_the_queue_holds_the_newest_keys_of_all_processes(found: Found) -> None:
    for world in worker.WORLDS:
        queues = [r["moco"]["state"]["two_views.queue"] for r in found[world]]
        assert all(torch.equal(queues[0], q) for q in queues)
        assert int(found[world][0]["moco"]["state"]["two_views.queue_at"]) == 3 * worker.BATCH % 10
    assert int(found[1][0]["moco, both ways"]["state"]["two_views.queue_at"]) == 6 * worker.BATCH % 20


def test_the_momentum_encoder_follows_as_the_papers_say() -> None:
    import math

    for rising, progress, stays in ((False, 0.3, 0.5), (True, 0.3, 1 - 0.5 * (math.cos(0.3 * math.pi) + 1) / 2)):
        model = worker.encoder("byol")
        heads = model.two_views
        assert heads is not None and heads.momentum is not None
        object.__setattr__(heads.settings, "rising", rising)
        slow = [p.clone() for p in heads.momentum.parameters()]
        with torch.no_grad():
            for p in [*model.tower("image").trunk.parameters(), *heads.projector.parameters()]:
                p.add_(torch.randn_like(p))
        fast = [*model.tower("image").trunk.parameters(), *heads.projector.parameters()]
        heads.follow(model.tower("image"), progress)
        for now, before, target in zip(heads.momentum.parameters(), slow, fast, strict=True):
            torch.testing.assert_close(now.data, stays * before + (1 - stays) * target.data, rtol=1e-12, atol=1e-12)


def test_nothing_of_the_momentum_encoder_is_trained() -> None:
    model = worker.encoder("byol")
    heads = model.two_views
    assert heads is not None and heads.momentum is not None
    output = model(worker.batch(0, 0, 1).images)
    assert output.targets is not None and not output.targets.requires_grad
    assert output.views is not None and output.views.shape == output.targets.shape == (2, worker.BATCH, 8)
    output.views.sum().backward()
    assert all(p.grad is None for p in heads.momentum.parameters())
    assert heads.predictor is not None and all(p.grad is not None for p in heads.predictor.parameters())
