"""Value and gradient of each loss are those of the library that people trust for it.

Where a library means something else by the same name, the test says what.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipkit.objectives import (
    Comparison,
    Tiling,
    hard_infonce,
    infonce,
    margin,
    negative_cosine,
    sigmoid,
    triplet,
)

RAGGED = Tiling(rows=5, columns=7, keep_bytes=0)
TEMPERATURE = 0.2
LABELS = torch.tensor([0, 1, 2, 0, 1, 0, 3, 3, 4, 2, 5, 1])  # 4 and 5 have no partner


def raw(n: int, seed: int, d: int = 8) -> Tensor:
    """Features before they are normalised, which is part of what is compared."""
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def log_scale(temperature: float = TEMPERATURE) -> Tensor:
    return torch.tensor([-math.log(temperature)], dtype=torch.float64)


def pairs(first: Tensor, second: Tensor) -> Comparison:
    ids = torch.arange(len(first))
    return Comparison(F.normalize(first, dim=1), F.normalize(second, dim=1), ids, ids, log_scale())


def stacked(features: Tensor, ids: Tensor) -> Comparison:
    """Everything with everything but itself."""
    unit = F.normalize(features, dim=1)
    return Comparison(unit, unit, ids, ids, log_scale(), itself=True)


def agree(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *features: Tensor, tolerance: float = 1e-5
) -> None:
    """Value and gradients by ``features``; ``ours`` takes the tiling as well."""
    answers = []
    for loss in (theirs, lambda *x: ours(*x, None), lambda *x: ours(*x, RAGGED)):
        leaves = [x.clone().requires_grad_() for x in features]
        value = loss(*leaves)
        answers.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for answer in answers[1:]:
        for got, expected in zip(answer, answers[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert any(float(g.norm()) > 1e-3 for g in answers[0][1:]), "nothing to compare"


# lightly


def test_lightlys_ntxent_is_infonce_of_both_views_stacked() -> None:
    loss = pytest.importorskip("lightly.loss").NTXentLoss(TEMPERATURE)

    def ours(first: Tensor, second: Tensor, tiling: Tiling | None) -> Tensor:
        c = stacked(torch.cat([first, second]), torch.arange(len(first)).repeat(2))
        return infonce(c, tiling, directions="rows")

    agree(ours, loss, raw(9, 0), raw(9, 1))


def test_lightlys_ntxent_with_a_memory_bank_is_infonce_over_a_queue() -> None:
    """MoCo's: the batch's other keys do not count. The keys' encoder gets no gradient there either."""
    bank = F.normalize(raw(11, 5), dim=1)
    keys = raw(9, 1)

    def theirs(queries: Tensor) -> Tensor:
        loss = pytest.importorskip("lightly.loss").NTXentLoss(TEMPERATURE, memory_bank_size=(11, 8))
        loss.memory_bank.bank = bank.clone()
        return loss(queries, keys)

    def ours(queries: Tensor, tiling: Tiling | None) -> Tensor:
        group = torch.zeros(len(queries), 1, dtype=torch.int64)
        c = replace(pairs(queries, keys), query_groups=group, key_groups=group, queue=bank)
        return infonce(c, tiling, directions="rows")

    agree(ours, theirs, raw(9, 0))


def test_lightlys_negative_cosine_is_byols_but_for_two_and_twice() -> None:
    loss = pytest.importorskip("lightly.loss").NegativeCosineSimilarity()
    agree(lambda a, b, t: negative_cosine(pairs(a, b), t), lambda a, b: 2 + 2 * loss(a, b), raw(9, 0), raw(9, 1))


# pytorch-metric-learning


def metric(name: str, **options: Any) -> nn.Module:
    module: nn.Module = getattr(pytest.importorskip("pytorch_metric_learning.losses"), name)(**options)
    return module


def squared_distance() -> Any:
    return pytest.importorskip("pytorch_metric_learning.distances").LpDistance(power=2)


def test_metric_learnings_supcon_is_infonce_of_labels() -> None:
    loss = metric("SupConLoss", temperature=TEMPERATURE)
    agree(lambda x, t: infonce(stacked(x, LABELS), t, directions="rows"), lambda x: loss(x, LABELS), raw(12, 0))


def test_metric_learnings_ntxent_is_infonce_for_one_positive() -> None:
    """With several, theirs leaves a positive's fellows out of its denominator (a loss for each pair), which is not
    SupCon's L_out, and averages over pairs and not over rows."""
    loss, ids = metric("NTXentLoss", temperature=TEMPERATURE), torch.arange(6).repeat(2)
    agree(lambda x, t: infonce(stacked(x, ids), t, directions="rows"), lambda x: loss(x, ids), raw(12, 0))
    x = raw(12, 0)
    assert abs(float(infonce(stacked(x, LABELS), directions="rows") - loss(x, LABELS))) > 0.01


@pytest.mark.parametrize("limit", [0.5, 1.2])
def test_metric_learnings_contrastive_loss_is_margin_with_its_terms_squared(limit: float) -> None:
    """Theirs is linear in the distance where Hadsell et al. square it: half the square of each term, then their own
    reducer, which averages positives and negatives apart and over those that are not 0."""
    reducers = pytest.importorskip("pytorch_metric_learning.reducers")

    class HalfSquares(reducers.AvgNonZeroReducer):  # type: ignore[misc, name-defined]
        def element_reduction_helper(self, losses: Tensor, embeddings: Tensor) -> Tensor:
            return super().element_reduction_helper(losses.square() / 2, embeddings)  # type: ignore[no-any-return]

    distance = pytest.importorskip("pytorch_metric_learning.distances").LpDistance()
    loss = metric("ContrastiveLoss", neg_margin=limit, distance=distance, reducer=HalfSquares())
    x = raw(12, 0, 3)
    agree(lambda x, t: margin(stacked(x, LABELS), limit, tiling=t), lambda x: loss(x, LABELS), x)


def test_metric_learnings_triplet_loss_of_all_triplets() -> None:
    loss = metric("TripletMarginLoss", margin=0.3, distance=squared_distance())
    agree(lambda x, t: triplet(stacked(x, LABELS), 0.3, tiling=t), lambda x: loss(x, LABELS), raw(12, 0))


def test_metric_learnings_batch_hard_miner_finds_the_hardest() -> None:
    """With the mean over all anchors that have a triplet; their default leaves out the satisfied ones."""
    mean = pytest.importorskip("pytorch_metric_learning.reducers").MeanReducer()
    miner = pytest.importorskip("pytorch_metric_learning.miners").BatchHardMiner(distance=squared_distance())
    loss = metric("TripletMarginLoss", margin=0.3, distance=squared_distance(), reducer=mean)
    agree(
        lambda x, t: triplet(stacked(x, LABELS), 0.3, "hardest", t),
        lambda x: loss(x, LABELS, miner(x, LABELS)),
        raw(12, 0),
    )


# sentence-transformers


def sentence(name: str, **options: Any) -> Callable[..., Tensor]:
    module = getattr(pytest.importorskip("sentence_transformers.sentence_transformer.losses"), name)
    found: Callable[..., Tensor] = module(nn.Identity(), **options).compute_loss_from_embeddings
    return found


def squared(x: Tensor) -> Tensor:
    unit = F.normalize(x, dim=1)
    return 2 - 2 * unit @ unit.T


def test_sentence_transformers_ranking_loss_is_infonce_with_given_negatives() -> None:
    """A third column of hard negatives: keys whose ids no query has."""
    loss = sentence("MultipleNegativesRankingLoss", scale=1 / TEMPERATURE)

    def ours(queries: Tensor, positives: Tensor, negatives: Tensor, tiling: Tiling | None) -> Tensor:
        c = pairs(queries, positives)
        keys = torch.cat([c.keys, F.normalize(negatives, dim=1)])
        c = replace(c, keys=keys, key_ids=torch.cat([c.key_ids, torch.arange(9) - 100]))
        return infonce(c, tiling, directions="rows")

    none = torch.zeros(0)
    agree(ours, lambda *x: loss(list(x), none), raw(9, 0), raw(9, 1), raw(9, 2))


def test_sentence_transformers_ranking_loss_in_both_directions() -> None:
    loss = sentence("MultipleNegativesRankingLoss", scale=1 / TEMPERATURE, directions=("query_to_doc", "doc_to_query"),
                    partition_mode="per_direction")  # fmt: skip
    agree(lambda a, b, t: infonce(pairs(a, b), t), lambda a, b: loss([a, b], torch.zeros(0)), raw(9, 0), raw(9, 1))


def test_sentence_transformers_triplet_losses() -> None:
    """Batch hard with labels of which all have a partner: theirs gives an anchor without one a positive at distance
    0, and counts it."""
    whole = torch.tensor([0, 1, 2, 0, 1, 0, 3, 3, 2, 1, 4, 4])
    for name, mining, labels in (
        ("BatchAllTripletLoss", "all", LABELS),
        ("BatchHardTripletLoss", "hardest", whole),
        ("BatchSemiHardTripletLoss", "semihard", LABELS),
    ):
        loss = sentence(name, margin=0.3, distance_metric=squared)
        agree(
            lambda x, t, mining=mining, labels=labels: triplet(stacked(x, labels), 0.3, mining, t),
            lambda x, loss=loss, labels=labels: loss([x], labels),
            raw(12, 0),
        )


def test_sentence_transformers_contrastive_loss_has_the_same_cells() -> None:
    """Theirs is Hadsell's sum over given pairs in their mean: given all cells of a table one by one, each kind
    averaged apart."""
    limit = 1.2

    def theirs(first: Tensor, second: Tensor) -> Tensor:
        euclidean = lambda a, b: (F.normalize(a, dim=1) - F.normalize(b, dim=1)).norm(dim=1)  # noqa: E731
        loss = sentence("ContrastiveLoss", margin=limit, distance_metric=euclidean, size_average=False)
        row, column = (x.flatten() for x in torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij"))
        a, b, same = first[row], second[column], (row == column).long()
        close = (euclidean(a, b) < limit) & (same == 0)
        return loss([a[same == 1], b[same == 1]], same[same == 1]) / 9 + loss([a[close], b[close]], same[close]) / max(
            int(close.sum()), 1
        )

    agree(lambda a, b, t: margin(pairs(a, b), limit, tiling=t), theirs, raw(9, 0, 3), raw(9, 1, 3))


# open_clip


def test_open_clips_losses() -> None:
    from open_clip.loss import ClipLoss, SigLipLoss

    bias = torch.tensor([-4.0], dtype=torch.float64)

    def unit(*x: Tensor) -> list[Tensor]:
        return [F.normalize(f, dim=1) for f in x]

    scale = log_scale().exp()
    agree(lambda a, b, t: infonce(pairs(a, b), t), lambda a, b: ClipLoss()(*unit(a, b), scale), raw(9, 0), raw(9, 1))
    agree(
        lambda a, b, t: sigmoid(replace(pairs(a, b), bias=bias), t),
        lambda a, b: SigLipLoss()(*unit(a, b), scale, bias),
        raw(9, 0),
        raw(9, 1),
    )


# Papers whose code is no library, written out from it


def test_robinsons_hard_negatives() -> None:
    """The criterion of Robinson et al.'s published code, both views stacked."""
    beta, tau_plus, n = 0.7, 0.1, 9

    def theirs(first: Tensor, second: Tensor) -> Tensor:
        first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
        out = torch.cat([first, second])
        similarity = torch.exp(out @ out.T / TEMPERATURE)
        mask = ~torch.eye(n, dtype=torch.bool).repeat(2, 2)
        negative = similarity.masked_select(mask).view(2 * n, -1)
        positive = torch.exp((first * second).sum(1) / TEMPERATURE).repeat(2)
        importance = (beta * negative.log()).exp()
        weighted = (importance * negative).sum(1) / importance.mean(1)
        left = (-tau_plus * (2 * n - 2) * positive + weighted) / (1 - tau_plus)
        left = left.clamp(min=(2 * n - 2) * math.exp(-1 / TEMPERATURE))
        return (-torch.log(positive / (positive + left))).mean()

    def ours(first: Tensor, second: Tensor, tiling: Tiling | None) -> Tensor:
        c = stacked(torch.cat([first, second]), torch.arange(n).repeat(2))
        return hard_infonce(c, beta, tau_plus, "rows", tiling)

    agree(ours, theirs, raw(n, 0), raw(n, 1), tolerance=1e-11)


def test_the_logq_corrected_softmax() -> None:
    """Yi et al. 2019: the logits less the log of each item's probability of being in the batch. An item that is in
    the batch twice is no negative of itself."""
    items = torch.tensor([0, 1, 2, 3, 1, 4, 5, 0, 6])
    log_q = torch.log(torch.tensor([0.3, 0.2, 0.1, 0.1, 0.1, 0.1, 0.1], dtype=torch.float64))[items]

    def theirs(users: Tensor, vectors: Tensor) -> Tensor:
        logits = F.normalize(users, dim=1) @ F.normalize(vectors, dim=1).T / TEMPERATURE - log_q
        hit = (items[:, None] == items[None, :]) & ~torch.eye(9, dtype=torch.bool)
        return F.cross_entropy(logits.masked_fill(hit, -torch.inf), torch.arange(9))

    def ours(users: Tensor, vectors: Tensor, tiling: Tiling | None) -> Tensor:
        group = items[:, None]
        c = replace(pairs(users, vectors), key_shift=-log_q, query_groups=group, key_groups=group)
        return infonce(c, tiling, directions="rows")

    agree(ours, theirs, raw(9, 0), raw(9, 1), tolerance=1e-11)


def test_sampling_with_the_correction_is_the_full_softmax_in_the_limit() -> None:
    """Bengio & Senecal 2003: drawn by their frequency and corrected by it, items add up to all of the catalogue;
    without the correction the frequent ones weigh too much."""
    n, generator = 40, torch.Generator().manual_seed(0)
    users, vectors = F.normalize(raw(1, 0), dim=1), F.normalize(raw(n, 1), dim=1)
    q = torch.rand(n, generator=generator).double().square() + 0.02
    q = q / q.sum()
    drawn = torch.multinomial(q, 40_000, replacement=True, generator=generator)
    truth = torch.logsumexp(users @ vectors.T / TEMPERATURE, 1)

    def estimate(shift: Tensor | None) -> Tensor:
        ids = torch.arange(len(drawn)) - 10**9
        keys, key_ids = torch.cat([vectors[:1], vectors[drawn]]), torch.cat([torch.zeros(1).long(), ids])
        key_shift = None if shift is None else torch.cat([torch.full((1,), -80.0, dtype=torch.float64), shift])
        c = Comparison(users, keys, torch.zeros(1).long(), key_ids, log_scale(), key_shift=key_shift)
        # the loss is the log of the sum less the positive's score
        return infonce(c, RAGGED if shift is None else Tiling(1, 999, 0), directions="rows")

    positive = (users @ vectors[0] / TEMPERATURE)[0]
    corrected = estimate(-q[drawn].log() - math.log(len(drawn))) + positive - 80
    assert abs(float(corrected - truth)) < 0.02
    assert abs(float(estimate(None) + positive - math.log(len(drawn)) + math.log(n) - truth)) > 0.05
