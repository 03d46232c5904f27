"""The heads of two views: what their description rebuilds, and the normalised projection."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from torch import nn

from clipkit.encoders import Tower, TwoViews, TwoViewsSettings

WIDTH, OUT = 6, 4
PLAIN = TwoViewsSettings(hidden=8, out=OUT, momentum=0.9)
NORMALISED = TwoViewsSettings(hidden=8, out=OUT, momentum=0.9, predictor=5, normalised=True)


def tower() -> Tower:
    return Tower(nn.Sequential(nn.Flatten(), nn.Linear(12, WIDTH)), nn.Identity())


def heads(settings: TwoViewsSettings) -> TwoViews:
    torch.manual_seed(0)
    return TwoViews(tower(), WIDTH, settings).double()


def features(n: int = 32) -> torch.Tensor:
    """Features that share a large part, so that projections that are not normalised all point the same way."""
    generator = torch.Generator().manual_seed(1)
    return 10 + torch.randn(n, WIDTH, generator=generator, dtype=torch.float64)


def test_a_normalised_projection_has_mean_zero_and_variance_one_over_the_batch() -> None:
    made = heads(NORMALISED)
    assert made.momentum is not None
    for projector in (made.projector, made.momentum[1]):
        out = projector(features())
        torch.testing.assert_close(out.mean(0), torch.zeros(OUT, dtype=torch.float64), rtol=0, atol=1e-12)
        torch.testing.assert_close(out.var(0, unbiased=False), torch.ones(OUT, dtype=torch.float64), rtol=2e-3, atol=0)
    assert made.predictor is not None
    assert not isinstance(made.predictor[-1], nn.BatchNorm1d), "what is predicted is normalised, not the prediction"
    plain = heads(PLAIN)
    assert plain.projector(features()).mean(0).abs().max() > 1e-3


def test_nothing_in_a_normalised_projection_is_without_effect() -> None:
    made = heads(NORMALISED)
    weight = torch.randn(32, OUT, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (made.project(features()) * weight).sum().backward()
    for name, parameter in made.projector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, f"{name} is never trained"


@pytest.mark.parametrize("settings", [PLAIN, NORMALISED])
def test_a_description_rebuilds_the_same_heads(settings: TwoViewsSettings) -> None:
    made = heads(settings)
    again = TwoViews.from_description(tower(), made.describe()).double()
    again.load_state_dict(made.state_dict())
    torch.testing.assert_close(again.project(features()), made.project(features()), rtol=0, atol=0)


def test_heads_described_before_there_was_a_normalised_projection_have_none() -> None:
    described = {"width": WIDTH, **asdict(PLAIN)}
    del described["normalised"]
    assert TwoViews.from_description(tower(), described).settings == PLAIN
