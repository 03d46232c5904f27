"""The schedule, the number of steps, and what weight decay acts on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from training_helpers import make_config

from clipkit.config import ModelConfig, OptimConfig
from clipkit.encoders import build
from clipkit.errors import ClipkitError
from clipkit.training.optim import decays, learning_rate, make_optimizer, total_steps, warmup_steps


def rates(config: OptimConfig, samples: int) -> list[float]:
    """The learning rate of each step of a run."""
    steps = total_steps(config, samples)
    warmup = warmup_steps(config, steps)
    return [learning_rate(step, steps, warmup, config.lr) for step in range(steps)]


def test_the_rate_rises_in_a_line_and_falls_in_half_a_cosine_to_nearly_zero() -> None:
    found = rates(OptimConfig(batch_size=10, epochs=100, lr=1.0, warmup=20), 10)
    assert len(found) == 100
    assert 0 < found[0] < 0.1
    rises = [b - a for a, b in pairwise(found[:20])]
    assert max(rises) - min(rises) < 1e-12 and min(rises) > 0
    assert max(found) == pytest.approx(1.0)
    assert abs(found.index(max(found)) - 20) <= 1
    after = found[21:]
    assert all(a > b for a, b in pairwise(after))
    assert found[60] == pytest.approx(0.5, abs=0.01), "the middle of the cosine is half of the peak"
    assert 0 <= found[-1] < 0.001


@pytest.mark.parametrize("samples", [1, 7, 10, 11, 95, 1000])
@pytest.mark.parametrize("warmup", [None, 0, 1, 5, 10**6])
def test_warm_up_never_exceeds_the_run(samples: int, warmup: int | None) -> None:
    config = OptimConfig(batch_size=10, epochs=1, lr=2.0, warmup=warmup)
    steps = total_steps(config, samples)
    assert 0 <= warmup_steps(config, steps) < max(steps, 1)
    found = rates(config, samples)
    assert all(0 < rate <= 2.0 + 1e-12 for rate in found)
    assert max(found) == pytest.approx(2.0), "every run reaches its peak rate"


def test_default_warm_up_is_a_tenth_and_at_most_2000() -> None:
    assert warmup_steps(OptimConfig(), 500) == 50
    assert warmup_steps(OptimConfig(), 10**6) == 2000


@pytest.mark.parametrize(
    ("settings", "samples", "expected"),
    [
        ({"epochs": 4}, 60, 12),
        ({"epochs": 4}, 61, 13),
        ({"epochs": 0.5}, 60, 2),
        ({"epochs": 0.001}, 60, 1),
        ({"epochs": 4, "max_steps": 5}, 60, 5),
        ({"epochs": 4, "max_steps": 500}, 60, 12),
    ],
)
def test_steps(settings: dict[str, float], samples: int, expected: int) -> None:
    assert total_steps(OptimConfig(batch_size=20, **settings), samples) == expected


@pytest.mark.parametrize("settings", [{"epochs": 0}, {"epochs": -1}, {"max_steps": 0}, {"max_steps": -3}])
def test_runs_of_no_step_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ClipkitError, match=next(iter(settings)).replace("_", "-")):
        total_steps(OptimConfig(**settings), 60)


def test_negative_warm_up_is_refused() -> None:
    with pytest.raises(ClipkitError, match="--warmup"):
        warmup_steps(OptimConfig(warmup=-1), 10)


@pytest.mark.parametrize("lr", [0.0, -1e-3, float("nan")])
def test_rates_that_make_no_sense_are_refused(lr: float) -> None:
    with pytest.raises(ClipkitError, match="--lr"):
        make_optimizer(nn.Linear(2, 2), OptimConfig(lr=lr))


def test_decay_spares_gains_biases_positions_and_temperature(tmp_path: Path) -> None:
    model = build(ModelConfig(str(make_config(tmp_path / "tiny.json"))), sigmoid=True)
    optimizer = make_optimizer(model, OptimConfig(wd=0.3))
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        spared = (
            parameter.ndim < 2
            or name in ("log_scale", "bias")
            or "positional_embedding" in name
            or "class_embedding" in name
        )
        assert decay[id(parameter)] == (0.0 if spared else 0.3), name
    assert len(decay) == len(list(model.parameters()))
    kinds = {name.rsplit(".", 1)[-1] for name, p in model.named_parameters() if decay[id(p)] == 0.3}
    assert {"weight", "in_proj_weight"} <= kinds


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("image.trunk.pos_embed", (1, 5, 8), False),  # timm
        ("image.trunk.cls_token", (1, 1, 8), False),
        ("image.trunk.layers.0.blocks.0.attn.relative_position_bias_table", (49, 2), False),  # timm's swin: both a
        # bias and a position
        ("text.trunk.encoder.embeddings.position_embeddings.weight", (40, 8), False),  # transformers
        ("text.trunk.encoder.embeddings.position_embedding.weight", (40, 8), False),
        ("text.trunk.encoder.embeddings.word_embeddings.weight", (40, 8), True),
        ("image.trunk.stages.0.blocks.0.conv_dw.weight", (8, 1, 7, 7), True),
        ("image.trunk.norm.weight", (8,), False),
        ("log_scale", (1,), False),
        ("bias", (1,), False),
    ],
)
def test_decay_by_the_names_of_other_libraries(name: str, shape: tuple[int, ...], wanted: bool) -> None:
    assert decays(name, nn.Parameter(torch.zeros(shape))) is wanted


def test_locked_weights_are_not_in_the_optimizer(tmp_path: Path) -> None:
    model = build(ModelConfig(str(make_config(tmp_path / "tiny.json")), lock_image=True))
    trained = {id(p) for g in make_optimizer(model, OptimConfig()).param_groups for p in g["params"]}
    assert not trained & {id(p) for p in model.image.parameters()}
    assert {id(p) for p in model.text.parameters()} <= trained


def test_two_locked_towers_without_heads_leave_nothing_to_train(tmp_path: Path) -> None:
    config = ModelConfig(str(make_config(tmp_path / "tiny.json")), lock_image=True, lock_text=True)
    with pytest.raises(ClipkitError, match="lock"):
        make_optimizer(build(config), OptimConfig())
