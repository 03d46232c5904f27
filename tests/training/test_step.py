"""One step: the gradient of the whole batch, whatever the pieces, and no update from what is not finite."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from training_helpers import make_config

from clipkit.config import ModelConfig, OptimConfig
from clipkit.encoders import DualEncoder, build
from clipkit.errors import ClipkitError
from clipkit.objectives import GlobalContrastive, infonce, pairs_table
from clipkit.pairs import PairBatch, PipeSet
from clipkit.training.optim import make_optimizer
from clipkit.training.step import settle_batchnorm, settle_objective, train_step


@pytest.fixture
def model(tmp_path: Path) -> DualEncoder:
    return build(ModelConfig(str(make_config(tmp_path / "tiny.json"))))


def batch(n: int = 10) -> PairBatch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    texts = torch.randint(1, 400, (n, 24), generator=generator)
    texts[:, 8] = 49407  # end of text
    texts[:, 9:] = 0
    return PairBatch(images, texts, torch.arange(n), torch.arange(n))


def step(model: DualEncoder, config: OptimConfig, seed: int = 0) -> tuple[float, float]:
    torch.manual_seed(seed)
    result = train_step(
        model, batch(), pairs_table, infonce, make_optimizer(model, config), Accelerator(cpu=True), config
    )
    return result.loss, result.grad_norm


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("size", [1, 3, 5, 10, 64])
def test_micro_batches_change_memory_and_nothing_else(model: DualEncoder, size: int) -> None:
    whole, pieces = copy.deepcopy(model), copy.deepcopy(model)
    loss, norm = step(whole, OptimConfig(wd=0.0))
    loss_pieces, norm_pieces = step(pieces, OptimConfig(wd=0.0, micro_batch_size=size))
    assert loss_pieces == pytest.approx(loss, abs=1e-6) and norm_pieces == pytest.approx(norm, rel=1e-4)
    for (name, a), (_, b) in zip(whole.named_parameters(), pieces.named_parameters(), strict=True):
        assert a.grad is not None and b.grad is not None, name
        assert torch.allclose(a.grad, b.grad, atol=2e-5), name


def test_the_loss_is_infonce_by_hand(model: DualEncoder) -> None:
    data = batch()
    with torch.no_grad():
        images, texts = model.encode_image(data.images), model.encode_text(data.texts)
        scores = model.log_scale.exp() * images @ texts.T
        labels = torch.arange(len(scores))
        expected = (nn.functional.cross_entropy(scores, labels) + nn.functional.cross_entropy(scores.T, labels)) / 2
    assert step(model, OptimConfig())[0] == pytest.approx(float(expected), abs=1e-5)


def test_the_gradient_is_clipped_and_its_norm_before_is_told(model: DualEncoder) -> None:
    free, clipped = copy.deepcopy(model), copy.deepcopy(model)
    _, norm = step(free, OptimConfig(grad_clip=0))
    total = math.sqrt(sum(float((p.grad**2).sum()) for p in free.parameters() if p.grad is not None))
    assert norm == pytest.approx(total, rel=1e-4), "0 switches clipping off"
    limit = norm / 7
    _, told = step(clipped, OptimConfig(grad_clip=limit))
    assert told == pytest.approx(norm, rel=1e-4)
    total = math.sqrt(sum(float((p.grad**2).sum()) for p in clipped.parameters() if p.grad is not None))
    assert total == pytest.approx(limit, rel=1e-3)


def test_the_temperature_is_bounded(model: DualEncoder) -> None:
    with torch.no_grad():
        model.log_scale.fill_(math.log(99.9999))
    step(model, OptimConfig(lr=10.0, scale_max=20.0))
    assert float(model.log_scale.detach().exp()) <= 20.0 + 1e-4


def test_a_constant_temperature_has_no_bound(model: DualEncoder) -> None:
    with torch.no_grad():
        model.log_scale.fill_(math.log(33.0))
    model.log_scale.requires_grad_(False)
    step(model, OptimConfig(scale_max=20.0))
    assert float(model.log_scale.exp()) == pytest.approx(33.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nothing_is_updated_from_what_is_not_finite(model: DualEncoder, value: float) -> None:
    config = OptimConfig()
    optimizer = make_optimizer(model, config)
    before = weights(model)
    with pytest.raises(ClipkitError, match="--lr"):
        train_step(
            model, batch(), pairs_table, lambda c: infonce(c) * value, optimizer, Accelerator(cpu=True), config,
        )  # fmt: skip
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not optimizer.state, "no moment was touched"


def test_a_gradient_that_is_not_finite_stops_as_well(model: DualEncoder) -> None:
    config = OptimConfig()
    before = weights(model)
    name, parameter = next(iter(model.text.named_parameters()))
    handle = parameter.register_hook(lambda g: g * float("inf"))
    with pytest.raises(ClipkitError, match="gradient"):
        train_step(model, batch(), pairs_table, infonce, make_optimizer(model, config), Accelerator(cpu=True), config)
    handle.remove()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()), name


def test_bf16_autocast_is_near_and_scores_stay_float32(model: DualEncoder) -> None:
    seen = []

    def objective(comparison: object) -> torch.Tensor:
        seen.append(comparison.queries.dtype)  # type: ignore[attr-defined]
        return infonce(comparison)  # type: ignore[arg-type]

    config = OptimConfig()
    exact = step(copy.deepcopy(model), config)[0]
    torch.manual_seed(0)
    optimizer = make_optimizer(model, config)
    got = train_step(model, batch(), pairs_table, objective, optimizer, Accelerator(cpu=True), config, torch.bfloat16)
    assert seen == [torch.float32]
    assert got.loss == pytest.approx(exact, abs=0.1) and got.loss != exact


def test_batchnorm_lives_only_on_the_whole_batch(tmp_path: Path) -> None:
    config = {
        "embed_dim": 16,
        "vision_cfg": {"timm_model_name": "test_resnet", "timm_pool": "avg", "timm_proj": "linear", "image_size": 32},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    import json

    path = tmp_path / "bn.json"
    path.write_text(json.dumps(config))

    def running(model: DualEncoder) -> torch.Tensor:
        return torch.cat([b.float().flatten() for n, b in model.image.named_buffers() if "running_mean" in n]).clone()

    whole = build(ModelConfig(str(path)))
    before = running(whole)
    assert len(before)
    settled, message = settle_batchnorm(whole, None, 10)
    assert message is None
    step(settled.train(), OptimConfig())
    assert not torch.equal(running(settled), before), "live statistics move"

    cut = build(ModelConfig(str(path)))
    settled, message = settle_batchnorm(cut, 5, 10)
    assert message is not None and "BatchNorm" in message and "--micro-batch-size" in message
    step(settled.train(), OptimConfig(micro_batch_size=5))
    assert torch.equal(running(settled), before), "frozen statistics do not, in training mode either"


def test_what_remembers_samples_takes_none_from_a_pipe() -> None:
    """Whatever comes out of a pipe gets a new number each time."""
    pipe = PipeSet("pipe:cat x.tar", 64)
    with pytest.raises(ClipkitError, match=r"pipe:cat x\.tar: --objective global remembers samples.*make shards of it"):
        settle_objective(GlobalContrastive(), pipe, torch.device("cpu"))
    assert settle_objective(infonce, pipe, torch.device("cpu")) is infonce
