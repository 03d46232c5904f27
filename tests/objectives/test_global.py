"""The global contrastive loss against its definition: estimates, gradients, and where it meets InfoNCE."""

from __future__ import annotations

import math
from dataclasses import replace

import objectives_loops as loops
import pytest
import torch
from objectives_loops import ruled, unit
from torch import Tensor

from clipkit.errors import ClipkitError
from clipkit.objectives import Comparison, GlobalContrastive, falling_gamma, infonce

KINDS = ("pairs", "captions", "labels", "itself", "captions groups shift queue bias")


def means(c: Comparison) -> list[list[tuple[int, float]]]:
    """(id, g) of every row and of every column that has one."""
    found = []
    for ids, lines in ((c.query_ids, loops.rows(c)), (c.key_ids, loops.columns(c))):
        pairs = [(i, loops.g(line)) for i, line in zip(ids.tolist(), lines, strict=True)]
        found.append([(i, g) for i, g in pairs if g is not None])
    return found


def updated(u: dict[int, float], gs: list[tuple[int, float]], gamma: float) -> dict[int, float]:
    for i in {i for i, _ in gs}:
        g = loops.mean([g for j, g in gs if j == i])
        u = u | {i: (1 - gamma) * u[i] + gamma * g if i in u else g}
    return u


def leaves(c: Comparison) -> dict[str, Tensor]:
    return {n: getattr(c, n).clone().requires_grad_() for n in ("queries", "keys", "log_scale")}


@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_value_and_gradient_are_the_papers(kind: str, gamma: float) -> None:
    """Three batches of the same ids: the gradient is that of the mean of g / (eps + u), u as it is after the update."""
    loss, eps = GlobalContrastive(8, gamma=gamma, eps=0.05), 0.05
    us: list[dict[int, float]] = [{}, {}]
    for seed in range(3):
        c = ruled(kind, seed)
        gs = means(c)
        us = [updated(u, g, gamma) for u, g in zip(us, gs, strict=True)]
        own = leaves(c)
        value = loss(replace(c, **own))
        value.backward()
        sides = [loops.mean([math.log(eps + u[i]) for i, _ in g]) for u, g in zip(us, gs, strict=True)]
        assert value.item() == pytest.approx(loops.mean(sides), rel=1e-12)
        for u, log_u in zip(us, (loss.log_u_rows, loss.log_u_columns), strict=True):
            expected = [u.get(i, 0.0) for i in range(8)]
            torch.testing.assert_close(log_u.exp(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)  # type: ignore[operator]

        def share(x: Comparison, us: list[dict[int, float]] = us) -> float:
            return loops.mean(
                [loops.mean([g / (eps + u[i]) for i, g in gs]) for u, gs in zip(us, means(x), strict=True)]
            )

        if seed < 2:
            continue  # loops take their time
        for name, grad in loops.gradient(share, c).items():
            if name != "bias":
                torch.testing.assert_close(own[name].grad, grad, rtol=1e-6, atol=1e-8)


def test_with_gamma_1_it_is_infonce() -> None:
    """eps = 1 / N puts the positive into the denominator again."""
    c = ruled("pairs")
    first, second = leaves(c), leaves(c)
    value, other = GlobalContrastive(6, gamma=1.0, eps=1 / 5)(replace(c, **first)), infonce(replace(c, **second))
    torch.testing.assert_close(value + math.log(5), other, rtol=1e-12, atol=1e-12)
    value.backward()
    other.backward()
    for name in first:
        torch.testing.assert_close(first[name].grad, second[name].grad, rtol=1e-11, atol=1e-13)


@pytest.mark.slow
def test_small_batches_come_to_weigh_as_the_whole_data_set_does() -> None:
    """The paper's point: the mean gradient of batches of 4 out of 32 is that of the whole data set but for the noise;
    InfoNCE's is another, and no number of batches averages that out."""
    n, generator = 32, torch.Generator().manual_seed(0)
    features = [unit(n, 6, generator) for _ in range(2)]
    ids, scale = torch.arange(n), torch.tensor([math.log(8.0)], dtype=torch.float64)
    loss = GlobalContrastive(n, gamma=0.1)

    def gradient(objective: GlobalContrastive | None, rows: Tensor) -> Tensor:
        queries = features[0].clone().requires_grad_()
        c = Comparison(queries[rows], features[1][rows], ids[rows], ids[rows], scale)
        (infonce(c) if objective is None else objective(c)).backward()
        assert queries.grad is not None
        return queries.grad

    truth = gradient(GlobalContrastive(n, gamma=1.0), ids)
    sums = [torch.zeros_like(truth) for _ in range(2)]
    for step in range(500):
        rows = torch.randperm(n, generator=generator)[:4]
        for total, objective in zip(sums, (loss, None), strict=True):
            total += gradient(objective, rows) if step >= 100 else 0 * gradient(objective, rows)
    ours, infonces = (torch.nn.functional.cosine_similarity(s.flatten(), truth.flatten(), dim=0) for s in sums)
    assert ours > 0.97 and ours > infonces + 0.04, (ours, infonces)


def test_sharp_temperatures_do_not_overflow() -> None:
    c = replace(ruled("pairs"), log_scale=torch.tensor([math.log(1000.0)], dtype=torch.float64))
    loss = GlobalContrastive(6, gamma=0.5)
    for keys in (c.keys, -c.queries, c.queries):
        own = replace(c, keys=keys, queries=c.queries.clone().requires_grad_())
        value = loss(own)
        value.backward()
        assert torch.isfinite(value) and own.queries.grad is not None and torch.isfinite(own.queries.grad).all()
        assert torch.isfinite(loss.log_u_rows).all()  # type: ignore[arg-type]


def test_the_estimates_are_in_the_checkpoint_and_at_rest_in_evaluation() -> None:
    c = ruled("pairs")
    loss, other = GlobalContrastive(8, gamma=0.3), GlobalContrastive(8, gamma=0.3)
    loss(ruled("pairs", 1))
    assert set(loss.state_dict()) == {"log_u_rows", "log_u_columns"}
    other.load_state_dict(loss.state_dict())
    before = {n: x.clone() for n, x in loss.state_dict().items()}
    loss.eval()
    assert torch.equal(loss(c), loss(c))
    assert all(torch.equal(x, before[n]) for n, x in loss.state_dict().items())
    loss.train()
    assert torch.equal(loss(c), other(c)) and not torch.equal(loss.log_u_rows, before["log_u_rows"])  # type: ignore[arg-type]
    assert torch.isinf(loss.log_u_rows[6:]).all()  # type: ignore[index]


def test_the_number_of_samples_may_be_told_later() -> None:
    c, told, later = ruled("pairs"), GlobalContrastive(6, gamma=0.3), GlobalContrastive(gamma=0.3)
    with pytest.raises(ClipkitError, match="n_samples is not known"):
        later(c)
    later.remember(6)
    assert torch.equal(told(c), later(c)) and set(later.state_dict()) == {"log_u_rows", "log_u_columns"}


def test_estimates_are_as_wide_as_the_device_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apple's GPUs have no float64."""
    asked = []

    def wide(device: torch.device) -> torch.dtype:
        asked.append(device)
        return torch.float32

    true, c = GlobalContrastive(6, gamma=0.3), ruled("pairs")
    monkeypatch.setattr("clipkit.objectives.global_contrastive.wide", wide)
    narrow = GlobalContrastive(gamma=0.3)
    narrow.remember(6, "meta")
    assert asked == [torch.device("meta")]
    assert {(x.dtype, x.device.type) for x in narrow.buffers()} == {(torch.float32, "meta")}
    narrow.remember(6)
    for _ in range(2):
        torch.testing.assert_close(narrow(c), true(c), rtol=1e-6, atol=1e-7)
    assert {x.dtype for x in narrow.buffers()} == {torch.float32}


def test_gamma_falls_from_epoch_to_epoch_along_a_half_cosine() -> None:
    """Wei et al. 2024, section 4: 0.5 (1 + cos(pi floor(epoch) / E)) (1 - least) + least, and least from E on."""
    found = [falling_gamma(0.2, epoch, 4.0) for epoch in (0, 0.99, 1, 2, 2.5, 3, 4, 9)]
    quarter = 0.8 * math.sqrt(0.5) / 2
    assert found == pytest.approx([1, 1, 0.6 + quarter, 0.6, 0.6, 0.6 - quarter, 0.2, 0.2], abs=1e-12)


def test_gamma_does_not_fall_in_a_run_too_short_for_it() -> None:
    assert falling_gamma(0.2, 0.9, 0.5) == 1
