"""The figures of a space against their papers' definitions, and what is said of spaces that have collapsed."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from clipkit.errors import ClipkitError
from clipkit.evaluation import diagnose, measure_health


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def spread(n: int = 200, d: int = 32, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


@pytest.mark.parametrize("n, d", [(300, 24), (20, 24)])
def test_every_figure_is_its_definition(n: int, d: int) -> None:
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(n, d)) * rng.random(d) + 0.3, rng.normal(size=(n, d)) - 0.2
    health = measure_health(images, texts)
    x, y = torch.tensor(unit(images)), torch.tensor(unit(texts))
    side = health.images
    # Wang & Isola's own code, in their section 4
    assert health.alignment == pytest.approx((x - y).norm(p=2, dim=1).pow(2).mean().item(), rel=1e-12)
    assert side.uniformity == pytest.approx(torch.pdist(x).pow(2).mul(-2).exp().mean().log().item(), rel=1e-12)
    values = torch.linalg.svdvals(x)
    shares = values / values.sum()
    assert side.effective_rank == pytest.approx(math.exp(-(shares * shares.log()).sum()), rel=1e-9)
    around = torch.linalg.svdvals(x - x.mean(0)) ** 2
    assert side.first_component == pytest.approx((around[0] / around.sum()).item(), rel=1e-9)
    assert health.modality_gap == pytest.approx((x.mean(0) - y.mean(0)).norm().item(), rel=1e-12)
    assert health.distance == pytest.approx((torch.cdist(x, y) ** 2).mean().item(), rel=1e-9)
    cosines = (x @ x.T)[~torch.eye(n, dtype=torch.bool)]
    assert side.cosine == pytest.approx(cosines.mean().item(), rel=1e-9)
    assert side.std == pytest.approx(x.std(0, correction=0).mean().item(), rel=1e-12)
    assert side.norm == pytest.approx(np.linalg.norm(images, axis=1).mean(), rel=1e-12)
    assert (side.n, side.embed_dim, side.zeros, side.dead) == (n, d, 0, 0)
    assert health.texts is not None and health.texts.norm == pytest.approx(np.linalg.norm(texts, axis=1).mean())


def test_cases_that_can_be_computed_by_hand() -> None:
    axes = np.eye(4)
    assert measure_health(axes).images.effective_rank == pytest.approx(4)
    assert measure_health(axes).images.uniformity == pytest.approx(-4)  # ‖x - y‖² = 2 for all pairs
    assert measure_health(axes, -axes).alignment == pytest.approx(4)
    assert measure_health(axes, axes[[1, 0, 3, 2]]).alignment == pytest.approx(2)
    same = np.tile([[3.0, 4.0]], (5, 1))
    health = measure_health(same, -same)
    assert health.images.effective_rank == pytest.approx(1, abs=1e-6) and health.images.uniformity == pytest.approx(0)
    assert health.modality_gap == pytest.approx(2) and health.images.norm == pytest.approx(5)
    assert math.isnan(health.images.first_component) and health.images.std == pytest.approx(0)
    # singular values 2 and 1: shares 2/3 and 1/3
    two = measure_health(np.array([[1, 0], [1, 0], [1, 0], [1, 0], [0, 1.0]])).images
    assert two.effective_rank == pytest.approx(math.exp(2 / 3 * math.log(3 / 2) + 1 / 3 * math.log(3)))
    assert measure_health(np.zeros((4, 3))).images.effective_rank == 0


def test_captions_by_their_picture() -> None:
    images, captions = spread(4, 8), spread(6, 8, 1)
    owner = [0, 0, 1, 2, 3, 3]
    expected = ((images[owner] - captions) ** 2).sum(1).mean()
    assert measure_health(images, captions, owner).alignment == pytest.approx(expected)
    assert math.isnan(measure_health(images, captions).alignment)
    assert "alignment" not in measure_health(images, captions).metrics()
    assert measure_health(images, captions).metrics()["modality_gap"] > 0


def test_order_scale_and_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, texts = spread(50, 8), spread(50, 8, 1)
    plain = measure_health(images, texts).metrics()
    order = np.random.default_rng(2).permutation(50)
    assert measure_health(images[order], texts[order]).metrics() == pytest.approx(plain)
    longer = measure_health(5 * images, 7 * texts).metrics()
    assert longer.pop("image_norm") == pytest.approx(5) and longer.pop("text_norm") == pytest.approx(7)
    assert longer == pytest.approx({k: v for k, v in plain.items() if not k.endswith("norm")})
    monkeypatch.setattr("clipkit.evaluation.health._TILE", 7)
    assert measure_health(images, texts).metrics() == pytest.approx(plain)


def test_tensors_with_a_graph_and_few_bits() -> None:
    rows = torch.tensor(spread(30, 8), requires_grad=True)
    assert measure_health(rows).metrics() == measure_health(rows.detach().numpy()).metrics()
    assert measure_health(rows.bfloat16()).images.effective_rank == pytest.approx(
        measure_health(rows).images.effective_rank, rel=0.01
    )
    # a cone so narrow that float32 would see a single point
    near = torch.ones(20, 4, dtype=torch.float64) + 1e-9 * torch.randn(
        20, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    assert 0 < measure_health(near).images.std < 1e-8


def test_a_healthy_space_is_called_healthy() -> None:
    images = spread()
    health = measure_health(images, unit(images + 0.1 * spread(seed=1)))
    assert diagnose(health) == []
    assert len(health.sentences()) == 1 and "no sign of collapse" in health.sentences()[0]
    assert json.loads(json.dumps(health.to_dict(), allow_nan=False))["sentences"] == health.sentences()
    assert json.loads(json.dumps(measure_health(images).to_dict(), allow_nan=False))["alignment"] is None


def kinds(*arguments: np.ndarray) -> list[str]:
    return [verdict.kind for verdict in diagnose(measure_health(*arguments))]


def test_each_illness_has_its_verdict() -> None:
    rng = np.random.default_rng(0)
    good = spread()
    point = np.ones(32) + 0.05 * rng.normal(size=(200, 32))
    assert kinds(point) == ["collapse"]
    assert kinds(good, point) == ["collapse"], "of the other side too"
    assert kinds(np.ones(32) + 0.35 * rng.normal(size=(200, 32))) == ["cone"]
    plane = rng.normal(size=(200, 2)) @ rng.normal(size=(2, 32))
    assert "few_dimensions" in kinds(plane)
    assert "few_dimensions" not in kinds(rng.normal(size=(200, 6)) @ rng.normal(size=(6, 32)))
    half = np.concatenate([spread(200, 15), np.zeros((200, 17))], axis=1)
    assert kinds(half) == ["dead_dimensions"]
    assert kinds(np.concatenate([spread(200, 17), np.zeros((200, 15))], axis=1)) == []
    assert kinds(good * [10, *[1] * 31]) == ["one_direction"]
    assert kinds(np.where(np.arange(200)[:, None] < 150, 0, good)) == ["zeros"]
    assert kinds(good, spread(seed=1)) == ["pairs"]
    apart = np.eye(32)[0]
    assert kinds(unit(good + apart), unit(good - apart)) == ["gap"]
    assert kinds(good[:15], good[:15] * 0) == [], "too few rows to say anything"


def test_a_verdict_says_what_is_seen_and_what_to_try() -> None:
    rng = np.random.default_rng(0)
    collapsed = measure_health(np.ones(64) + 0.01 * rng.normal(size=(100, 64)))
    verdict = diagnose(collapsed)[0]
    assert verdict.collapsed and "effective rank 1." in verdict.sentence and "of 64" in verdict.sentence
    assert "usual causes" in verdict.sentence and "--lr" in verdict.sentence
    assert "second views" in measure_health(spread(), spread(seed=1)).sentences(("first views", "second views"))[0]
    assert "pictures" not in measure_health(spread(), spread(seed=1)).sentences(("first views", "second views"))[0]


@pytest.mark.parametrize(
    "arguments, named",
    [
        ((np.ones(3),), "images_ND has shape"),
        ((np.ones((1, 3)),), "at least two rows"),
        ((np.array([[1.0, 2], [np.nan, 1]]),), r"images_ND\[1\]"),
        ((np.eye(3), np.eye(4)), "3 dimensions and texts_MD 4"),
        ((np.eye(3), np.eye(3), [0, 1, 3]), r"image_of_text_M\[2\]"),
    ],
)
def test_mistakes_are_named(arguments: tuple, named: str) -> None:
    with pytest.raises(ClipkitError, match=named):
        measure_health(*arguments)
