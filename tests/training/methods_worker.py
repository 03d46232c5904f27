"""Run by test_methods.py: three steps of each method of two views on 1, 2 and 3 gloo processes, in float64.

    python methods_worker.py FOLDER

The parent imports clipkit once and forks. Results go to FOLDER/results-W-RANK.pt, by the name of the case.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from worlds import run_worlds

from clipkit.config import Config
from clipkit.encoders import DualEncoder
from clipkit.pairs import PairBatch
from clipkit.pairs.order import piece
from clipkit.recipes import find_recipe
from clipkit.training.optim import make_optimizer
from clipkit.training.step import settle_batchnorm, train_step
from clipkit.training.strategy import shard

WORLDS = (1, 2, 3)
BATCH, STEPS = 7, 3
RECIPES: dict[str, dict[str, Any]] = {
    "simclr": {},
    "moco": {"queue": 10, "momentum": 0.9},
    "moco, both ways": {"queue": 20, "momentum": 0.9, "symmetric": True},
    "byol": {"momentum": 0.5, "predictor": 8},
    "byol, normalised": {"momentum": 0.5, "predictor": 8, "projector_norm": True},
    "supcon": {},
    "triplet": {"compare": "labels", "mining": "all"},
    "margin": {"compare": "labels"},
}


def config_of(name: str) -> Config:
    """The recipe's config for a tiny ResNet."""
    recipe = find_recipe(name.split(",")[0])
    return recipe.defaults.replace(
        image_model="test_resnet", image_pretrained=False, image_size=32, batch_size=BATCH, optimizer="sgd", lr=0.05,
        projector_hidden=16, projector_dim=8, **RECIPES[name],
    )  # fmt: skip


def encoder(name: str) -> DualEncoder:
    torch.manual_seed(0)
    model = find_recipe(name.split(",")[0]).encoders(config_of(name)).double()
    return model.train()


def batch(step: int, rank: int, world: int) -> PairBatch:
    """A rank's part of two views of seven pictures of three labels."""
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 2, 3, 32, 32), generator=generator, dtype=torch.uint8)
    ids, labels = torch.arange(BATCH) + 100 * step, torch.tensor([5, 5, 6, 6, 6, 5, 9])
    rows = piece(BATCH, rank, world)
    return PairBatch(images[rows], None, ids[rows], ids[:0], labels=labels[rows])


def steps(name: str, rank: int, world: int, sharded: bool = False) -> dict[str, Any]:
    """Losses of three steps, and everything that the model then holds."""
    config = config_of(name)
    recipe = find_recipe(name.split(",")[0])
    model, message = settle_batchnorm(encoder(name), None, BATCH)
    assert message is None
    accelerator = Accelerator(cpu=True)
    trained: Any = shard(model) if sharded else DistributedDataParallel(model) if world > 1 else model
    inner: DualEncoder = accelerator.unwrap_model(trained)
    optimizer = make_optimizer(inner, config.optim)
    losses = []
    for i in range(STEPS):
        result = train_step(
            trained, batch(i, rank, world), recipe.compare(config), recipe.objective(config), optimizer, accelerator,
            config.optim, progress=(i + 1) / STEPS,
        )  # fmt: skip
        losses.append(result.loss)
    state = {k: v.full_tensor() if hasattr(v, "full_tensor") else v for k, v in inner.state_dict().items()}
    return {"losses": losses, "state": {k: v.detach().clone() for k, v in state.items()}}


def gradients(rank: int, world: int) -> dict[str, Tensor]:
    """BatchNorm alone: output, gradient of the input and statistics, with a weight that differs per row."""
    from clipkit.training.batchnorm import SyncedBatchNorm

    generator = torch.Generator().manual_seed(1)
    whole = torch.randn(BATCH, 4, 3, 5, generator=generator, dtype=torch.float64) * 3 + 100
    weight = torch.randn(whole.shape, generator=generator, dtype=torch.float64)
    norm = torch.nn.BatchNorm2d(4).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
    rows = piece(BATCH, rank, world)
    x = whole[rows].clone().requires_grad_()
    synced = SyncedBatchNorm(norm)
    out = synced(x)
    (out * weight[rows]).sum().backward()
    found = {"out": out.detach(), "grad": x.grad, "mean": norm.running_mean, "var": norm.running_var}
    return {k: v.clone() for k, v in found.items() if v is not None}


def mined(rank: int, world: int) -> Tensor:
    """What is mined for each of twelve samples in five steps of a pool of nine."""
    from clipkit.encoders import Embeddings
    from clipkit.training.mining import Miner

    generator = torch.Generator().manual_seed(2)
    miner = Miner(12, 4, 0.1, pool=9, dtype=torch.float64)
    for _ in range(5):
        ids = torch.randperm(12, generator=generator)[:BATCH]
        sides = torch.randn(2, BATCH, 4, generator=generator, dtype=torch.float64)
        images, texts = torch.nn.functional.normalize(sides, dim=-1)
        groups = (ids[:, None] % 5).repeat(1, 6)
        rows = piece(BATCH, rank, world)
        of_texts = {"text_groups": groups[rows], "text_places": (ids % 3)[rows]}
        part = PairBatch(None, None, ids[rows], ids[rows], image_groups=groups[rows], **of_texts)
        miner.learn_from(Embeddings(images[rows], texts[rows], torch.zeros(1), None), part)
    return torch.cat([miner.mined_N, miner.mined_place_N, miner.label_P3.flatten(), miner.place_P, miner.filled])


def found_by(rank: int, world: int, arguments: Sequence[str]) -> dict[str, Any]:
    """Every method, BatchNorm alone, and on two ranks two methods with sharded weights."""
    results: dict[str, Any] = {name: steps(name, rank, world) for name in RECIPES}
    results["batchnorm"] = gradients(rank, world)
    results["mined"] = mined(rank, world)
    if world == 2:
        results |= {f"{name}, sharded": steps(name, rank, world, sharded=True) for name in ("moco", "byol")}
    return results


if __name__ == "__main__":
    run_worlds(WORLDS, found_by)
