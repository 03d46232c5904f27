"""InfoNCE and the pairwise sigmoid loss against references of our own, in float64, and their gradients."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from clipkit.encoders import Embeddings
from clipkit.errors import ClipkitError
from clipkit.objectives import Comparison, compare, infonce, sigmoid

Loss = Callable[[Comparison], Tensor]
LOSSES = [infonce, sigmoid]

IDS = {
    "pairs": (range(6), range(6)),
    "shuffled": (range(6), [3, 1, 0, 2, 5, 4]),
    "several captions": ([0, 1, 2], [0, 0, 1, 2, 2, 2, 0]),
    "labels on both sides": ([0, 0, 1, 1, 2], [1, 0, 2, 0, 1, 1]),
    "rows without positives": ([0, 1, 7, 2, 8], [2, 9, 0, 1]),
    "all the same": ([4] * 3, [4] * 5),
    "one cell": ([0], [0]),
}


def unit(n: int, seed: int, dtype: torch.dtype = torch.float64, d: int = 5) -> Tensor:
    return F.normalize(torch.randn(n, d, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=-1)


def comparison(
    ids: str, scale: float = 8.0, bias: float | None = None, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Comparison:
    query_ids, key_ids = (torch.tensor(list(i)) for i in IDS[ids])
    queries, keys = unit(len(query_ids), seed, dtype), unit(len(key_ids), seed + 1, dtype)
    log_scale = torch.tensor([math.log(scale)], dtype=dtype)
    return Comparison(
        queries, keys, query_ids, key_ids, log_scale, None if bias is None else torch.tensor([bias], dtype=dtype)
    )


def table(c: Comparison) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    scores = np.exp(c.log_scale.item()) * c.queries.double().numpy() @ c.keys.double().numpy().T
    positive = np.array([[q == k for k in c.key_ids.tolist()] for q in c.query_ids.tolist()])
    return scores + (0.0 if c.bias is None else c.bias.item()), positive


def reference_infonce(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """SupCon's L_out, averaged over the rows that have a positive, both directions."""

    def direction(s: NDArray[np.float64], p: NDArray[np.bool_]) -> float:
        losses = []
        for row, mine in zip(s, p, strict=True):
            if mine.any():
                log_probability = row - (row.max() + np.log(np.exp(row - row.max()).sum()))
                losses.append(-log_probability[mine].mean())
        return sum(losses) / max(len(losses), 1)

    return (direction(scores, positive) + direction(scores.T, positive.T)) / 2


def reference_sigmoid(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    return float(np.logaddexp(0, np.where(positive, -scores, scores)).sum() / len(scores))


REFERENCES = {infonce: reference_infonce, sigmoid: reference_sigmoid}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("scale", [0.5, 14.3, 100.0, 3000.0])
@pytest.mark.parametrize("bias", [None, -10.0])
def test_the_value_is_the_references(loss: Loss, ids: str, scale: float, bias: float | None) -> None:
    for seed in range(3):
        c = comparison(ids, scale, bias, seed)
        got, expected = loss(c), REFERENCES[loss](*table(c))
        assert got.shape == () and got.dtype == torch.float64
        assert float(got) == pytest.approx(expected, rel=1e-12, abs=1e-12)
        assert float(got) >= -1e-12


def test_infonce_is_clips_cross_entropy_for_pairs() -> None:
    """The formula as it is written in the paper, through torch's own cross-entropy."""
    c = comparison("pairs", 14.3)
    logits = c.log_scale.exp() * c.queries @ c.keys.T
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    torch.testing.assert_close(infonce(c), expected, rtol=1e-12, atol=1e-12)


def test_open_clips_losses_agree_on_pairs() -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    c = comparison("pairs", 14.3, -4.0)
    scale = c.log_scale.exp()
    assert c.bias is not None
    torch.testing.assert_close(infonce(c), ClipLoss()(c.queries, c.keys, scale), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigmoid(c), SigLipLoss()(c.queries, c.keys, scale, c.bias), rtol=1e-12, atol=1e-12)


def test_hand_made_values() -> None:
    eye, ids = torch.eye(2, dtype=torch.float64), torch.arange(2)
    c = Comparison(eye, eye, ids, ids, torch.zeros(1, dtype=torch.float64))
    assert float(infonce(c)) == pytest.approx(math.log(1 + math.exp(-1)), rel=1e-12)
    assert float(sigmoid(c)) == pytest.approx(math.log1p(math.exp(-1)) + math.log(2), rel=1e-12)
    # three positives with equal scores: -log(1/3), not 0 and not three times that
    same = torch.ones(1, 1, dtype=torch.float64)
    c = Comparison(same, same.expand(3, 1), ids[:1], ids[:1].expand(3), torch.zeros(1, dtype=torch.float64))
    assert float(infonce(c)) == pytest.approx(math.log(3) / 2, rel=1e-12)  # the columns' losses are 0


@pytest.mark.parametrize("loss", LOSSES)
def test_without_any_positive(loss: Loss) -> None:
    c = comparison("pairs")
    keys = c.keys.clone().requires_grad_()
    lonely = Comparison(c.queries, keys, c.query_ids, c.key_ids + 100, c.log_scale)
    value = loss(lonely)
    value.backward()
    assert keys.grad is not None and torch.isfinite(keys.grad).all()
    if loss is infonce:
        assert float(value) == 0 and not keys.grad.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ids", IDS)
def test_permuting_rows_or_columns_changes_nothing(loss: Loss, ids: str) -> None:
    c = comparison(ids, bias=-1.0)
    generator = torch.Generator().manual_seed(9)
    rows, columns = (torch.randperm(n, generator=generator) for n in (len(c.queries), len(c.keys)))
    moved = Comparison(c.queries[rows], c.keys[columns], c.query_ids[rows], c.key_ids[columns], c.log_scale, c.bias)
    torch.testing.assert_close(loss(moved), loss(c), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ids", IDS)
def test_infonce_is_symmetric_and_the_sigmoid_up_to_its_divisor(ids: str) -> None:
    c = comparison(ids, bias=-1.0)
    turned = Comparison(c.keys, c.queries, c.key_ids, c.query_ids, c.log_scale, c.bias)
    torch.testing.assert_close(infonce(turned), infonce(c), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sigmoid(turned) * len(c.keys), sigmoid(c) * len(c.queries), rtol=1e-12, atol=1e-12)


def test_infonce_does_not_see_the_bias() -> None:
    for bias in (-10.0, 3.0):
        torch.testing.assert_close(
            infonce(comparison("several captions", bias=bias)), infonce(comparison("several captions"))
        )


def test_ids_may_be_any_integers() -> None:
    c = comparison("labels on both sides", bias=-1.0)
    far = Comparison(c.queries, c.keys, c.query_ids - 2**62, c.key_ids - 2**62, c.log_scale, c.bias)
    for loss in LOSSES:
        assert torch.equal(loss(far), loss(c))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ids", IDS)
def test_gradients(loss: Loss, ids: str) -> None:
    """Features before they are normalised, log-scale and bias, by finite differences."""
    query_ids, key_ids = (torch.tensor(list(i)) for i in IDS[ids])
    generator = torch.Generator().manual_seed(4)
    images, texts = (torch.randn(len(i), 3, dtype=torch.float64, generator=generator) for i in (query_ids, key_ids))
    log_scale, bias = (torch.tensor([v], dtype=torch.float64) for v in (1.2, -0.7))

    def value(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
        unit_images, unit_texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        return loss(Comparison(unit_images, unit_texts, query_ids, key_ids, log_scale, bias))

    inputs = tuple(x.requires_grad_() for x in (images, texts, log_scale, bias))
    assert torch.autograd.gradcheck(value, inputs, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_temperatures_gradient_comes_free(loss: Loss) -> None:
    """s dL/ds = sum <I, dI> = sum <T, dT>, without a bias."""
    c = comparison("labels on both sides")
    queries, keys, log_scale = (x.clone().requires_grad_() for x in (c.queries, c.keys, c.log_scale))
    loss(Comparison(queries, keys, c.query_ids, c.key_ids, log_scale)).backward()
    assert queries.grad is not None and keys.grad is not None and log_scale.grad is not None
    torch.testing.assert_close((queries * queries.grad).sum(), log_scale.grad[0], rtol=1e-11, atol=1e-12)
    torch.testing.assert_close((keys * keys.grad).sum(), log_scale.grad[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_float32_stays_finite_at_sharp_temperatures(loss: Loss, scale: float) -> None:
    c = comparison("labels on both sides", scale, -10.0, dtype=torch.float32)
    leaves = [x.clone().requires_grad_() for x in (c.queries, c.keys, c.log_scale)]
    value = loss(Comparison(leaves[0], leaves[1], c.query_ids, c.key_ids, leaves[2], c.bias))
    value.backward()
    assert float(value) == pytest.approx(REFERENCES[loss](*table(c)), rel=1e-4)
    assert all(x.grad is not None and torch.isfinite(x.grad).all() for x in leaves)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("embedding", [torch.float32, torch.bfloat16])
def test_scores_are_float32_under_autocast(loss: Loss, embedding: torch.dtype) -> None:
    """bf16 scores at a scale of 100 are off by 0.4, which is no rounding error any more."""
    c = comparison("pairs", 100.0, -3.0, dtype=torch.float32)
    c = Comparison(c.queries.to(embedding), c.keys.to(embedding), c.query_ids, c.key_ids, c.log_scale, c.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores, value = c.scores(), loss(c)
    assert scores.dtype == value.dtype == torch.float32
    expected = 100 * c.queries.double() @ c.keys.double().T - 3
    assert float((scores.double() - expected).abs().max()) < 1e-4
    assert float(value) == pytest.approx(REFERENCES[loss](*table(c)), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_touch_the_gradient(loss: Loss) -> None:
    gradients = []
    for enabled in (False, True):
        c = comparison("pairs", 30.0, dtype=torch.float32)
        queries = c.queries.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(Comparison(queries, c.keys, c.query_ids, c.key_ids, c.log_scale))
        value.backward()
        gradients.append(queries.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-7)


def test_compare_makes_pictures_queries_and_texts_keys() -> None:
    embeddings = Embeddings(unit(3, 0), unit(4, 1), torch.zeros(1), torch.ones(1))
    c = compare(embeddings, torch.arange(3), torch.tensor([0, 0, 1, 2]))
    assert c.queries is embeddings.images and c.keys is embeddings.texts
    assert c.positives().sum().item() == 4 and c.scores().shape == (3, 4)
    assert c.bias is embeddings.bias


@pytest.mark.parametrize(
    ("images", "texts", "image_ids", "text_ids"),
    [
        (None, unit(2, 0), range(2), range(2)),
        (unit(2, 0), None, range(2), range(2)),
        (unit(2, 0), unit(2, 1, d=6), range(2), range(2)),
        (unit(2, 0), unit(2, 1)[0], range(2), range(2)),
        (unit(2, 0), unit(2, 1), range(3), range(2)),
        (unit(2, 0), unit(2, 1), range(2), range(1)),
    ],
)
def test_what_cannot_be_compared_is_refused(
    images: Tensor | None, texts: Tensor | None, image_ids: range, text_ids: range
) -> None:
    with pytest.raises(ClipkitError) as caught:
        compare(
            Embeddings(images, texts, torch.zeros(1), None), torch.tensor(list(image_ids)), torch.tensor(list(text_ids))
        )
    assert "\n" not in str(caught.value)
